//! Templates by name: list, get, delete, tags, aliases.

use clap::Subcommand;
use nullspace_api::template::Visibility;
use nullspace_client::Error;
use serde_json::json;

use crate::app::App;
use crate::error::{CliError, Outcome};

#[derive(Debug, clap::Args)]
pub(super) struct One {
    /// NAME, NAME:TAG, NAME:BUILD, NAMESPACE/NAME or an id.
    #[arg(value_name = "TEMPLATE_REF", value_parser = crate::input::named)]
    template: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Only these fields, separated by commas.
    #[arg(long, value_name = "FIELDS")]
    fields: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    one: One,
    /// Only these fields, separated by commas.
    #[arg(long, value_name = "FIELDS")]
    fields: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct RenameArgs {
    #[command(flatten)]
    one: One,
    /// The new name; the old one goes on to lead to the template.
    #[arg(value_name = "NEW_NAME", value_parser = crate::input::named)]
    name: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct TagArgs {
    #[command(subcommand)]
    command: TagCommand,
}

#[derive(Debug, Subcommand)]
enum TagCommand {
    /// Make tags mean the build that the reference means
    Assign {
        #[command(flatten)]
        one: One,
        /// The tags.
        #[arg(value_name = "TAG", required = true)]
        tags: Vec<String>,
    },
    /// List tags
    List(One),
    /// Take a tag away
    Remove {
        #[command(flatten)]
        one: One,
        /// The tag.
        #[arg(value_name = "TAG", value_parser = crate::input::named)]
        tag: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct AliasArgs {
    #[command(subcommand)]
    command: AliasCommand,
}

#[derive(Debug, Subcommand)]
enum AliasCommand {
    /// List the names that a template had
    List(One),
    /// Take one away
    Remove {
        #[command(flatten)]
        one: One,
        /// The name.
        #[arg(value_name = "ALIAS", value_parser = crate::input::named)]
        alias: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct VisibilityArgs {
    #[command(subcommand)]
    command: VisibilityCommand,
}

#[derive(Debug, Subcommand)]
enum VisibilityCommand {
    /// Say who may use a template
    Set {
        #[command(flatten)]
        one: One,
        /// `private` or `public`.
        #[arg(value_name = "VISIBILITY")]
        visibility: String,
    },
}

fn visible(text: &str) -> Result<Visibility, CliError> {
    match text {
        "private" => Ok(Visibility::Private),
        "public" => Ok(Visibility::Public),
        _ => Err(CliError::usage(format!(
            "{text}: must be private or public"
        ))),
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ClaimArgs {
    #[command(subcommand)]
    command: ClaimCommand,
}

#[derive(Debug, Subcommand)]
enum ClaimCommand {
    /// Give a name back
    Release {
        /// The claim's token.
        #[arg(value_name = "CLAIM_TOKEN", value_parser = crate::input::named)]
        token: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct NamespaceArgs {
    #[command(subcommand)]
    command: NamespaceCommand,
}

#[derive(Debug, Subcommand)]
enum NamespaceCommand {
    /// Show a namespace
    Get {
        /// Its name.
        #[arg(value_name = "SLUG", value_parser = crate::input::named)]
        slug: String,
    },
}

pub(super) async fn list(args: &ListArgs, app: &App) -> Outcome {
    let templates = app.client()?.list_templates(args.fields.as_deref()).await?;
    app.ui.json(&templates)?;
    Ok(0)
}

pub(super) async fn get(args: &GetArgs, app: &App) -> Outcome {
    let client = app.client()?;
    let template = client
        .get_template(&args.one.template, args.fields.as_deref())
        .await?;
    app.ui.json(&template)?;
    Ok(0)
}

pub(super) async fn exists(args: &One, app: &App) -> Outcome {
    let exists = match app.client()?.get_template(&args.template, Some("id")).await {
        Ok(_) => true,
        Err(Error::Api(error)) if error.code == "template_not_found" => false,
        Err(error) => return Err(error.into()),
    };
    if app.ui.json {
        app.ui.json(&json!({"exists": exists}))?;
    } else {
        app.ui.line(exists.to_string());
    }
    Ok(0)
}

pub(super) async fn delete(args: &One, app: &App) -> Outcome {
    app.client()?.delete_template(&args.template).await?;
    done(app, "Deleted template", &args.template)
}

pub(super) async fn rename(args: RenameArgs, app: &App) -> Outcome {
    let client = app.client()?;
    let renamed = client
        .rename_template(&args.one.template, args.name)
        .await?;
    app.ui.json(&renamed)?;
    Ok(0)
}

pub(super) async fn tag(args: TagArgs, app: &App) -> Outcome {
    let client = app.client()?;
    match args.command {
        TagCommand::Assign { one, tags } => {
            app.ui
                .json(&client.assign_template_tags(&one.template, tags).await?)?;
        }
        TagCommand::List(one) => {
            app.ui
                .json(&client.list_template_tags(&one.template).await?)?;
        }
        TagCommand::Remove { one, tag } => {
            client.remove_template_tag(&one.template, &tag).await?;
            return done(app, "Removed tag", &tag);
        }
    }
    Ok(0)
}

pub(super) async fn alias(args: AliasArgs, app: &App) -> Outcome {
    let client = app.client()?;
    match args.command {
        AliasCommand::List(one) => {
            app.ui
                .json(&client.list_template_aliases(&one.template).await?)?;
            Ok(0)
        }
        AliasCommand::Remove { one, alias } => {
            client.remove_template_alias(&one.template, &alias).await?;
            done(app, "Removed alias", &alias)
        }
    }
}

pub(super) async fn visibility(args: VisibilityArgs, app: &App) -> Outcome {
    let VisibilityCommand::Set { one, visibility } = args.command;
    let visibility = visible(&visibility)?;
    let client = app.client()?;
    let changed = client
        .set_template_visibility(&one.template, visibility)
        .await?;
    app.ui.json(&changed)?;
    Ok(0)
}

pub(super) async fn reserve(args: One, app: &App) -> Outcome {
    let claim = app.client()?.claim_template_name(args.template).await?;
    app.ui.json(&claim)?;
    Ok(0)
}

pub(super) async fn claim(args: ClaimArgs, app: &App) -> Outcome {
    let ClaimCommand::Release { token } = args.command;
    app.client()?.release_template_name(&token).await?;
    done(app, "Released claim", &token)
}

pub(super) async fn namespace(args: NamespaceArgs, app: &App) -> Outcome {
    let NamespaceCommand::Get { slug } = args.command;
    app.ui
        .json(&app.client()?.get_template_namespace(&slug).await?)?;
    Ok(0)
}

fn done(app: &App, what: &str, which: &str) -> Outcome {
    match app.ui.json {
        true => app.ui.json(&json!({"done": true, "subject": which}))?,
        false => app.ui.line(format!("{what} {which}")),
    }
    Ok(0)
}
