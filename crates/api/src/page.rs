//! Pages of lists.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Items of a page when `limit` is absent.
pub const DEFAULT_LIMIT: u32 = 50;
/// The most items of a page.
pub const MAX_LIMIT: u32 = 200;

/// A page of a machine list: ask again with `next_token` until `has_next` is false.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenPage<T> {
    /// Newest first.
    pub items: Vec<T>,
    /// Opaque; present exactly when there is more.
    pub next_token: Option<String>,
    /// Whether there is more.
    pub has_next: bool,
}

/// A page of an agent list: ask again with `next_cursor` until it is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CursorPage<T> {
    /// Newest first.
    pub items: Vec<T>,
    /// Opaque; null at the end.
    pub next_cursor: Option<String>,
}
