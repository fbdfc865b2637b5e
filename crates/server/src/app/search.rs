//! Searching and replacing in files of a machine.

use nullspace_api::search::{ReplaceRequest, ReplaceResponse, SearchMatch, SearchRequest};
use nullspace_protocol::{ReplaceRequest as GuestReplace, SearchRequest as GuestSearch};

use super::file::{Files, file_error};
use crate::error::{Error, Result};

/// The longest pattern and replacement, in bytes.
const MAX_PATTERN: usize = 64 << 10;

impl Files {
    /// The lines beneath a path that match.
    ///
    /// # Errors
    /// `not_found`, `permission_denied`, `invalid_request` (no expression, over 100,000 lines).
    pub async fn find(&self, request: SearchRequest) -> Result<Vec<SearchMatch>> {
        let request = self.search_request(request)?;
        let found = self.guest.find(&request).await.map_err(file_error)?;
        Ok(found
            .into_iter()
            .map(|found| SearchMatch {
                file: found.file,
                line: found.line,
                content: found.content,
            })
            .collect())
    }

    /// The paths beneath a path whose names match.
    ///
    /// # Errors
    /// `not_found`, `permission_denied`, `invalid_request` (no glob, over 200,000 names).
    pub async fn search(&self, request: SearchRequest) -> Result<Vec<String>> {
        let request = self.search_request(request)?;
        self.guest.search(&request).await.map_err(file_error)
    }

    /// Replaces in files; nothing is changed when one of them cannot be.
    ///
    /// # Errors
    /// `not_found`, `permission_denied`, `invalid_request`.
    pub async fn replace(&self, request: ReplaceRequest) -> Result<ReplaceResponse> {
        self.require_workspace("replacing in files")?;
        is_pattern("pattern", &request.pattern)?;
        is_short("replacement", &request.replacement)?;
        if !request.dry_run {
            self.make_room(0).await?;
        }
        let files = request.files.into_iter().map(|path| self.check(path));
        let guest_request = GuestReplace {
            files: files.collect::<Result<_>>()?,
            pattern: request.pattern,
            replacement: request.replacement,
            dry_run: request.dry_run,
            user: self.user.clone(),
        };
        let done = (self.guest.replace(&guest_request).await).map_err(file_error)?;
        Ok(ReplaceResponse {
            dry_run: request.dry_run,
            replacements: done.replacements,
            files_modified: done.files_modified,
            files_skipped: done.files_skipped,
            binary_files_skipped: done.binary_files_skipped,
        })
    }

    fn search_request(&self, request: SearchRequest) -> Result<GuestSearch> {
        self.require_workspace("searching files")?;
        is_pattern("pattern", &request.pattern)?;
        Ok(GuestSearch {
            path: self.check(request.path)?,
            pattern: request.pattern,
            user: self.user.clone(),
            except: self.reserved().into_iter().map(str::to_owned).collect(),
        })
    }
}

fn is_pattern(field: &str, text: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::invalid(format!("{field}: must not be empty")));
    }
    is_short(field, text)
}

fn is_short(field: &str, text: &str) -> Result<()> {
    if text.len() > MAX_PATTERN {
        return Err(Error::invalid(format!("{field}: over {MAX_PATTERN} bytes")));
    }
    Ok(())
}
