//! The audit log: who asked for what.

use nullspace_api::audit::{AuditPage, ListAuditQuery};
use nullspace_api::page::MAX_LIMIT;

use crate::agents::next_cursor;
use crate::error::Error;
use crate::transport::{Call, Client};

impl Client {
    /// A page of the audit log, newest first. It may have fewer entries than there are, even none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_audit(&self, query: &ListAuditQuery) -> Result<AuditPage, Error> {
        let call = Call::get("/v1/audit")
            .query("limit", query.limit)
            .query("cursor", query.cursor.as_ref())
            .query("key_id", query.key_id.as_ref())
            .query("about", query.about.as_ref())
            .query("tenant_id", query.tenant_id.as_ref());
        self.fetch(call).await
    }

    /// The newest entries of what `query` selects, as many pages as it takes until there are `most`; its own limit does
    /// not count.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn latest_audit(
        &self,
        query: &ListAuditQuery,
        most: usize,
    ) -> Result<AuditPage, Error> {
        let mut query = query.clone();
        let mut items = Vec::new();
        loop {
            let left = most.saturating_sub(items.len());
            query.limit = Some(u32::try_from(left).unwrap_or(MAX_LIMIT).min(MAX_LIMIT));
            let page = self.list_audit(&query).await?;
            items.extend(page.items);
            match next_cursor(page.next_cursor, query.cursor.as_ref()) {
                Some(cursor) if items.len() < most => query.cursor = Some(cursor),
                rest => {
                    return Ok(AuditPage {
                        items,
                        next_cursor: rest,
                    });
                }
            }
        }
    }
}
