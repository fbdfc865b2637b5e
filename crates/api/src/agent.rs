//! Wire types of Agent Deployments.
