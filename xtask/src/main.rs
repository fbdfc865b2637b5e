//! Project tasks: one file per task.

fn main() {}
