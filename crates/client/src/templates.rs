//! Templates and their builds.

use bytes::{Buf, Bytes, BytesMut};
use futures_util::Stream;
use http::Method;
use nullspace_api::template::{
    AssignTagsRequest, ClaimNameRequest, PreflightRequest, PreflightResponse,
    RenameTemplateRequest, SetVisibilityRequest, TemplateAlias, TemplateInfo, TemplateNameClaim,
    TemplateNamespace, TemplateTag, Visibility,
};
use nullspace_api::template_build::{
    Build, BuildLogEntry, BuildPage, BuildRequest, BuildSnapshot, CancelBuildRequest,
    ListBuildsQuery, PlanResponse, PromoteBuildRequest, RetryBuildRequest, ValidateResponse,
};

use crate::error::Error;
use crate::transport::{Call, Client, Download, body_from, segment};

const PATH: &str = "/v1/templates";

fn reference(text: &str) -> String {
    format!("{PATH}/refs/{}", segment(text))
}

fn build(id: &str) -> String {
    format!("{PATH}/builds/{}", segment(id))
}

/// What a build says, as it comes.
#[derive(Debug)]
pub struct BuildLog {
    download: Download,
    buffer: BytesMut,
}

impl BuildLog {
    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Transport`] when the connection broke or fell silent, [`Error::Decode`] for what is no entry.
    pub async fn next(&mut self) -> Result<Option<BuildLogEntry>, Error> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                // Everything else is a sign of life, or nothing.
                if let Some(entry) = line.strip_prefix(b"data: ") {
                    return serde_json::from_slice(entry)
                        .map(Some)
                        .map_err(|error| self.download.decode_error(error.to_string()));
                }
            }
            match self.download.chunk().await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}

impl Client {
    /// Every template; with `fields` only these of each.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_templates(
        &self,
        fields: Option<&str>,
    ) -> Result<Vec<serde_json::Value>, Error> {
        self.fetch(Call::get(PATH).query("fields", fields)).await
    }

    /// One template; with `fields` only these of it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_template(
        &self,
        text: &str,
        fields: Option<&str>,
    ) -> Result<serde_json::Value, Error> {
        self.fetch(Call::get(reference(text)).query("fields", fields))
            .await
    }

    /// Removes a template.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_template(&self, text: &str) -> Result<(), Error> {
        self.discard(Call::new(Method::DELETE, reference(text)))
            .await
    }

    /// The tags of a template.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_template_tags(&self, text: &str) -> Result<Vec<TemplateTag>, Error> {
        self.fetch(Call::get(format!("{}/tags", reference(text))))
            .await
    }

    /// Makes tags mean the build that a reference means.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn assign_template_tags(
        &self,
        text: &str,
        tags: Vec<String>,
    ) -> Result<TemplateInfo, Error> {
        let call = Call::post(format!("{}/tags", reference(text)));
        self.fetch(call.json(&AssignTagsRequest { tags })?).await
    }

    /// Takes a tag away.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_template_tag(&self, text: &str, tag: &str) -> Result<(), Error> {
        let path = format!("{}/tags/{}", reference(text), segment(tag));
        self.discard(Call::new(Method::DELETE, path)).await
    }

    /// Says who may use a template.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_template_visibility(
        &self,
        text: &str,
        visibility: Visibility,
    ) -> Result<TemplateInfo, Error> {
        let call = Call::new(Method::PATCH, format!("{}/visibility", reference(text)));
        self.fetch(call.json(&SetVisibilityRequest { visibility })?)
            .await
    }

    /// Gives a template another name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn rename_template(
        &self,
        text: &str,
        new_name: String,
    ) -> Result<TemplateInfo, Error> {
        let call = Call::post(format!("{}/rename", reference(text)));
        self.fetch(call.json(&RenameTemplateRequest { new_name })?)
            .await
    }

    /// The names that a template had.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_template_aliases(&self, text: &str) -> Result<Vec<TemplateAlias>, Error> {
        self.fetch(Call::get(format!("{}/aliases", reference(text))))
            .await
    }

    /// Takes a name away that a template had.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_template_alias(&self, text: &str, alias: &str) -> Result<(), Error> {
        let path = format!("{}/aliases/{}", reference(text), segment(alias));
        self.discard(Call::new(Method::DELETE, path)).await
    }

    /// Keeps a name for a quarter of an hour.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn claim_template_name(
        &self,
        template_ref: String,
    ) -> Result<TemplateNameClaim, Error> {
        let call = Call::post(format!("{PATH}/claims"));
        self.fetch(call.json(&ClaimNameRequest { template_ref })?)
            .await
    }

    /// Gives a name back.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn release_template_name(&self, token: &str) -> Result<(), Error> {
        let path = format!("{PATH}/claims/{}", segment(token));
        self.discard(Call::new(Method::DELETE, path)).await
    }

    /// A namespace.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_template_namespace(&self, slug: &str) -> Result<TemplateNamespace, Error> {
        let path = format!("{PATH}/namespaces/{}", segment(slug));
        self.fetch(Call::get(path)).await
    }

    /// Which files of a build have to be sent.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn preflight_template_blobs(
        &self,
        request: &PreflightRequest,
    ) -> Result<PreflightResponse, Error> {
        let call = Call::post(format!("{PATH}/blobs/preflight"));
        self.fetch(call.json(request)?).await
    }

    /// Sends a file of a build. It is opened again for each attempt.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put_template_blob<F, S, E>(&self, id: &str, data: F) -> Result<(), Error>
    where
        F: Fn() -> S + Send + Sync,
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let path = format!("{PATH}/blobs/{}", segment(id));
        let call = Call::new(Method::PUT, path).stream(move |pulse| body_from(data(), pulse));
        self.discard(call).await
    }

    /// Begins a build.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start_template_build(&self, request: &BuildRequest) -> Result<Build, Error> {
        let call = Call::post(format!("{PATH}/builds"));
        self.fetch(call.json(request)?).await
    }

    /// Where a build stands and what it said from an offset on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_template_build(&self, id: &str, offset: u64) -> Result<BuildSnapshot, Error> {
        self.fetch(Call::get(build(id)).query("offset", Some(offset)))
            .await
    }

    /// Reads what a build says from an offset on, with `follow` until it ends.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn template_build_log(
        &self,
        id: &str,
        offset: u64,
        follow: bool,
    ) -> Result<BuildLog, Error> {
        let call = Call::get(format!("{}/logs", build(id)))
            .query("offset", Some(offset))
            .query("follow", Some(follow));
        Ok(BuildLog {
            download: self.send(&call).await?,
            buffer: BytesMut::new(),
        })
    }

    /// Stops a build.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancel_template_build(
        &self,
        id: &str,
        reason: Option<String>,
    ) -> Result<BuildSnapshot, Error> {
        let call = Call::post(format!("{}/cancel", build(id)));
        self.fetch(call.json(&CancelBuildRequest { reason })?).await
    }

    /// Builds again.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn retry_template_build(
        &self,
        id: &str,
        request: &RetryBuildRequest,
    ) -> Result<Build, Error> {
        let call = Call::post(format!("{}/retry", build(id)));
        self.fetch(call.json(request)?).await
    }

    /// Makes a tag mean a build.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn promote_template_build(
        &self,
        id: &str,
        tag: String,
    ) -> Result<TemplateInfo, Error> {
        let call = Call::post(format!("{}/promote", build(id)));
        let request = PromoteBuildRequest {
            tag: Some(tag),
            tags: None,
        };
        self.fetch(call.json(&request)?).await
    }

    /// Checks a build without beginning it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn validate_template(
        &self,
        request: &BuildRequest,
    ) -> Result<ValidateResponse, Error> {
        let call = Call::post(format!("{PATH}/validate"));
        self.fetch(call.json(request)?).await
    }

    /// What a build would do.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn plan_template(&self, request: &BuildRequest) -> Result<PlanResponse, Error> {
        let call = Call::post(format!("{PATH}/plan"));
        self.fetch(call.json(request)?).await
    }

    /// Builds of a template, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_template_builds(
        &self,
        text: &str,
        query: &ListBuildsQuery,
    ) -> Result<BuildPage, Error> {
        let call = Call::get(format!("{}/builds", reference(text)))
            .query("status", query.status.as_deref())
            .query("backend", query.backend.as_deref())
            .query("source_type", query.source_type.as_deref())
            .query("limit", query.limit)
            .query("cursor", query.cursor.as_deref());
        self.fetch(call).await
    }
}
