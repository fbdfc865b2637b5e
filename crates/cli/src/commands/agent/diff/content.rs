//! The contents of outputs, as far as they are compared.

use nullspace_api::agent::{Output, Outputs};
use nullspace_client::agents::output_place;
use nullspace_client::{Client, Error};
use sha2::{Digest as _, Sha256};

use super::Left;
use crate::ui::Ui;

/// Larger files are not fetched.
const MAX_COMPARED: u64 = 8 << 20;
/// Larger files are not shown line by line.
const MAX_SHOWN: u64 = 64 << 10;

/// What is in a file, if somebody looked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// SHA-256 in hex.
    pub(super) digest: Option<String>,
    /// All of it, of a small text.
    pub(super) text: Option<String>,
}

/// The outputs of both runs with their contents.
pub(super) struct Found {
    pub(super) a: Vec<Left>,
    pub(super) b: Vec<Left>,
    /// Declared paths that are there in both and whose contents may differ all the same.
    pub(super) not_compared: Vec<String>,
}

/// Fetches what can be compared. What cannot be fetched is told, and not compared.
pub(super) async fn look(ui: Ui, client: &Client, a: &Outputs, b: &Outputs) -> Found {
    let without = |outputs: &Outputs| -> Vec<Left> {
        outputs
            .outputs
            .iter()
            .map(|output| Left {
                output: output.clone(),
                content: Content::default(),
            })
            .collect()
    };
    let mut found = Found {
        a: without(a),
        b: without(b),
        not_compared: Vec::new(),
    };
    let spinner = ui.spinner("Comparing outputs");
    for left in &mut found.a {
        let path = &left.output.configured_path;
        let Some(right) = found
            .b
            .iter_mut()
            .find(|right| right.output.configured_path == *path)
        else {
            continue;
        };
        match plan(&left.output, &right.output) {
            Plan::Nothing => {}
            Plan::Unseen => found.not_compared.push(path.clone()),
            Plan::Fetch => {
                spinner.set_message(format!("Comparing {path}"));
                let both = tokio::try_join!(
                    fetch(client, a, &left.output),
                    fetch(client, b, &right.output)
                );
                match both {
                    Ok((Some(of_a), Some(of_b))) => {
                        left.content = of_a;
                        right.content = of_b;
                    }
                    Ok(_) => found.not_compared.push(path.clone()),
                    Err(error) => {
                        spinner.suspend(|| ui.warn(format!("{path} is not compared: {error}")));
                        found.not_compared.push(path.clone());
                    }
                }
            }
        }
    }
    spinner.finish_and_clear();
    found
}

#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// They differ anyway, or nothing is there.
    Nothing,
    /// They may differ, and it is too much to look.
    Unseen,
    Fetch,
}

fn plan(a: &Output, b: &Output) -> Plan {
    let available = |output: &Output| output.status == "available";
    if !available(a) || !available(b) || a.kind != b.kind {
        return Plan::Nothing;
    }
    let same_size = a.size_bytes == b.size_bytes;
    if a.kind.as_deref().is_some_and(|kind| kind != "file") {
        let same = same_size && a.file_count == b.file_count;
        return if same { Plan::Unseen } else { Plan::Nothing };
    }
    let largest = a.size_bytes.unwrap_or(0).max(b.size_bytes.unwrap_or(0));
    match (same_size, largest) {
        (_, 0..=MAX_SHOWN) => Plan::Fetch,
        (false, _) => Plan::Nothing,
        (true, ..=MAX_COMPARED) => Plan::Fetch,
        (true, _) => Plan::Unseen,
    }
}

/// `None` if it is larger than it was said to be, or nowhere.
async fn fetch(
    client: &Client,
    outputs: &Outputs,
    output: &Output,
) -> Result<Option<Content>, Error> {
    let Some((machine, path)) = output_place(outputs, output) else {
        return Ok(None);
    };
    let mut download = client.files(machine).download(path).await?;
    let mut hasher = Sha256::new();
    let mut small = Some(Vec::new());
    let mut size = 0;
    while let Some(piece) = download.chunk().await? {
        size += piece.len() as u64;
        if size > MAX_COMPARED {
            return Ok(None);
        }
        hasher.update(&piece);
        small = small.filter(|_| size <= MAX_SHOWN);
        if let Some(small) = &mut small {
            small.extend_from_slice(&piece);
        }
    }
    let digest = hasher.finalize();
    Ok(Some(Content {
        digest: Some(digest.iter().map(|byte| format!("{byte:02x}")).collect()),
        text: small
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .filter(|text| !text.contains('\0')),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_differ_and_is_small_is_fetched() {
        let output = |status: &str, kind: &str, size: u64| Output {
            status: status.to_owned(),
            kind: Some(kind.to_owned()),
            size_bytes: Some(size),
            ..Output::default()
        };
        let file = |size| output("available", "file", size);
        let large = MAX_COMPARED + 1;
        for (a, b, expected) in [
            (file(1), file(1), Plan::Fetch),
            (file(1), file(2), Plan::Fetch),
            (file(1), file(MAX_SHOWN + 1), Plan::Nothing),
            (file(MAX_COMPARED), file(MAX_COMPARED), Plan::Fetch),
            (file(large), file(large), Plan::Unseen),
            (file(1), output("missing", "file", 0), Plan::Nothing),
            (file(1), output("available", "directory", 1), Plan::Nothing),
            (
                output("available", "directory", 1),
                output("available", "directory", 1),
                Plan::Unseen,
            ),
            (
                output("available", "directory", 1),
                output("available", "directory", 2),
                Plan::Nothing,
            ),
        ] {
            assert_eq!(plan(&a, &b), expected, "{a:?} {b:?}");
        }
    }
}
