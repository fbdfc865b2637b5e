//! Templates, their tags, the names they had and the names that are kept for somebody.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{StoreError, Tx};

/// One template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateRow {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub tenant_id: String,
    /// One segment; no other template of the tenant has it.
    pub name: String,
    /// `private` or `public`.
    pub visibility: String,
    /// When its first build was asked for.
    pub created_at: i64,
}

/// A tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRow {
    /// The tag.
    pub tag: String,
    /// The build it means.
    pub build_id: String,
    /// Since when.
    pub created_at: i64,
}

const COLUMNS: &str = "id, name, visibility, created_at, tenant_id";

fn from_row(row: &Row<'_>) -> rusqlite::Result<TemplateRow> {
    Ok(TemplateRow {
        id: row.get(0)?,
        name: row.get(1)?,
        visibility: row.get(2)?,
        created_at: row.get(3)?,
        tenant_id: row.get(4)?,
    })
}

/// Records a new template.
///
/// # Errors
/// When the id or the name is taken.
pub fn insert(tx: &Tx<'_>, row: &TemplateRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO template (id, name, visibility, created_at, tenant_id) VALUES (?1,?2,?3,?4,?5)",
    )?
    .execute(params![
        row.id,
        row.name,
        row.visibility,
        row.created_at,
        row.tenant_id
    ])?;
    Ok(())
}

/// By id.
///
/// # Errors
/// Those of the database.
pub fn get(db: &Connection, id: &str) -> Result<Option<TemplateRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!("SELECT {COLUMNS} FROM template WHERE id = ?1"))?
        .query_row([id], from_row)
        .optional()?)
}

/// A tenant's, by the name it has, or one that it had.
///
/// # Errors
/// Those of the database.
pub fn by_name(
    db: &Connection,
    tenant_id: &str,
    name: &str,
) -> Result<Option<TemplateRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM template WHERE (tenant_id = ?1 AND name = ?2) \
             OR id = (SELECT template_id FROM template_alias WHERE tenant_id = ?1 AND name = ?2) \
             ORDER BY name <> ?2 LIMIT 1"
        ))?
        .query_row([tenant_id, name], from_row)
        .optional()?)
}

/// Every template, the newest first.
///
/// # Errors
/// Those of the database.
pub fn list(db: &Connection) -> Result<Vec<TemplateRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM template ORDER BY created_at DESC, id"
    ))?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Says who may use it.
///
/// # Errors
/// Those of the database.
pub fn set_visibility(tx: &Tx<'_>, id: &str, visibility: &str) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE template SET visibility = ?2 WHERE id = ?1")?
        .execute([id, visibility])?;
    Ok(())
}

/// Gives it another name; the one it has becomes an alias.
///
/// # Errors
/// When the name is taken.
pub fn rename(tx: &Tx<'_>, row: &TemplateRow, name: &str, now: i64) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM template_alias WHERE tenant_id = ?1 AND name = ?2")?
        .execute([&row.tenant_id, name])?;
    tx.prepare_cached("UPDATE template SET name = ?2 WHERE id = ?1")?
        .execute([&row.id, name])?;
    tx.prepare_cached(
        "INSERT INTO template_alias (tenant_id, name, template_id, created_at) VALUES (?1,?2,?3,?4)",
    )?
    .execute(params![row.tenant_id, row.name, row.id, now])?;
    Ok(())
}

/// Forgets a template, its tags and its aliases. Its builds are marked.
///
/// # Errors
/// Those of the database.
pub fn delete(tx: &Tx<'_>, id: &str, now: i64) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM template WHERE id = ?1")?
        .execute([id])?;
    tx.prepare_cached("UPDATE template_build SET deleted_at = ?2 WHERE template_id = ?1")?
        .execute(params![id, now])?;
    Ok(())
}

/// The tags of a template, by name.
///
/// # Errors
/// Those of the database.
pub fn tags(db: &Connection, id: &str) -> Result<Vec<TagRow>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT tag, build_id, created_at FROM template_tag WHERE template_id = ?1 ORDER BY tag",
    )?;
    let rows = statement.query_map([id], |row| {
        Ok(TagRow {
            tag: row.get(0)?,
            build_id: row.get(1)?,
            created_at: row.get(2)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Makes a tag mean a build.
///
/// # Errors
/// Those of the database.
pub fn set_tag(
    tx: &Tx<'_>,
    id: &str,
    tag: &str,
    build_id: &str,
    now: i64,
) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO template_tag (template_id, tag, build_id, created_at) VALUES (?1,?2,?3,?4) \
         ON CONFLICT DO UPDATE SET build_id = ?3, created_at = ?4",
    )?
    .execute(params![id, tag, build_id, now])?;
    Ok(())
}

/// Takes a tag away. Answers whether it was there.
///
/// # Errors
/// Those of the database.
pub fn remove_tag(tx: &Tx<'_>, id: &str, tag: &str) -> Result<bool, StoreError> {
    let removed = tx
        .prepare_cached("DELETE FROM template_tag WHERE template_id = ?1 AND tag = ?2")?
        .execute([id, tag])?;
    Ok(removed > 0)
}

/// The names that a template had, and since when they are aliases.
///
/// # Errors
/// Those of the database.
pub fn aliases(db: &Connection, id: &str) -> Result<Vec<(String, i64)>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT name, created_at FROM template_alias WHERE template_id = ?1 ORDER BY created_at, name",
    )?;
    let rows = statement.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Takes an alias away. Answers whether it was there.
///
/// # Errors
/// Those of the database.
pub fn remove_alias(tx: &Tx<'_>, id: &str, name: &str) -> Result<bool, StoreError> {
    let removed = tx
        .prepare_cached("DELETE FROM template_alias WHERE template_id = ?1 AND name = ?2")?
        .execute([id, name])?;
    Ok(removed > 0)
}

/// Keeps a name for somebody.
///
/// # Errors
/// When somebody has it.
pub fn claim(
    tx: &Tx<'_>,
    token: &str,
    tenant_id: &str,
    name: &str,
    key_id: &str,
    expires_at: i64,
) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO template_claim (token, tenant_id, name, key_id, expires_at) VALUES (?1,?2,?3,?4,?5)",
    )?
    .execute(params![token, tenant_id, name, key_id, expires_at])?;
    Ok(())
}

/// Who keeps a name at that time: the key and the token.
///
/// # Errors
/// Those of the database.
pub fn claimed_by(
    db: &Connection,
    tenant_id: &str,
    name: &str,
    now: i64,
) -> Result<Option<(String, String)>, StoreError> {
    Ok(db
        .prepare_cached(
            "SELECT key_id, token FROM template_claim WHERE tenant_id = ?1 AND name = ?2 AND expires_at > ?3",
        )?
        .query_row(params![tenant_id, name, now], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?)
}

/// Gives a name back. Answers whether it was kept.
///
/// # Errors
/// Those of the database.
pub fn release(tx: &Tx<'_>, token: &str, key_id: &str) -> Result<bool, StoreError> {
    let removed = tx
        .prepare_cached("DELETE FROM template_claim WHERE token = ?1 AND key_id = ?2")?
        .execute([token, key_id])?;
    Ok(removed > 0)
}

/// Forgets claims that are over their time, and the one of a tenant's name that was built.
///
/// # Errors
/// Those of the database.
pub fn forget_claims(tx: &Tx<'_>, now: i64, built: Option<(&str, &str)>) -> Result<(), StoreError> {
    let (tenant_id, name) = built.unzip();
    tx.prepare_cached(
        "DELETE FROM template_claim WHERE expires_at <= ?1 OR (tenant_id = ?2 AND name = ?3)",
    )?
    .execute(params![now, tenant_id, name])?;
    Ok(())
}

/// Notes whom commands in a new machine run as.
///
/// # Errors
/// When the machine is not recorded.
pub fn set_machine_user(tx: &Tx<'_>, machine_id: &str, user: &str) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT INTO machine_user (machine_id, user) VALUES (?1,?2)")?
        .execute([machine_id, user])?;
    Ok(())
}

/// Whom commands in machines run that have not ended, by machine.
///
/// # Errors
/// Those of the database.
pub fn machine_users(db: &Connection) -> Result<Vec<(String, String)>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT machine_id, user FROM machine_user JOIN machine ON machine.id = machine_id WHERE ended_at IS NULL",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
