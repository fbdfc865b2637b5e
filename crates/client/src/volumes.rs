//! Volumes. Their files are at [`Client::files`], their uploads and their WebSocket where those of machines are: an id says
//! whose they are.

use http::Method;
use nullspace_api::id;
use nullspace_api::machine::VolumeMount;
use nullspace_api::volume::{CreateVolumeRequest, VolumeAttachment, VolumeInfo};
use serde_json::Value;

use crate::error::Error;
use crate::machines::machine_path;
use crate::transport::{Call, Client, segment};

/// Path of whatever has files: a machine, or a volume.
pub(crate) fn owner_path(id: &str) -> String {
    match id.starts_with(id::VOLUME) {
        true => volume_path(id),
        false => machine_path(id),
    }
}

fn volume_path(id: &str) -> String {
    format!("/v1/volumes/{}", segment(id))
}

fn name_path(name: &str) -> String {
    format!("/v1/volumes/by-name/{}", segment(name))
}

fn attachment_path(machine: &str, attachment: &str) -> String {
    format!("{}/volumes/{}", machine_path(machine), segment(attachment))
}

impl Client {
    /// Makes a volume.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_volume(&self, request: &CreateVolumeRequest) -> Result<VolumeInfo, Error> {
        self.fetch(Call::post("/v1/volumes").json(request)?).await
    }

    /// All volumes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_volumes(&self) -> Result<Vec<VolumeInfo>, Error> {
        self.fetch(Call::get("/v1/volumes")).await
    }

    /// The named fields of all volumes, as the server spells them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_volume_fields(&self, fields: &str) -> Result<Value, Error> {
        self.fetch(Call::get("/v1/volumes").query("fields", Some(fields)))
            .await
    }

    /// One volume, by id or by name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_volume(&self, reference: &str) -> Result<VolumeInfo, Error> {
        self.fetch(Call::get(reference_path(reference))).await
    }

    /// The named fields of one volume, as the server spells them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_volume_fields(&self, reference: &str, fields: &str) -> Result<Value, Error> {
        self.fetch(Call::get(reference_path(reference)).query("fields", Some(fields)))
            .await
    }

    /// Deletes a volume that is empty and that no machine has.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_volume(&self, id: &str) -> Result<(), Error> {
        self.discard(Call::new(Method::DELETE, volume_path(id)))
            .await
    }

    /// The machines that have a volume.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn volume_attachments(&self, id: &str) -> Result<Vec<VolumeAttachment>, Error> {
        self.fetch(Call::get(volume_path(id) + "/attachments"))
            .await
    }

    /// The volumes of a machine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn machine_volumes(&self, machine: &str) -> Result<Vec<VolumeAttachment>, Error> {
        self.fetch(Call::get(machine_path(machine) + "/volumes"))
            .await
    }

    /// Mounts a volume in a machine that runs.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn attach_volume(
        &self,
        machine: &str,
        mount: &VolumeMount,
    ) -> Result<VolumeAttachment, Error> {
        let call = Call::post(machine_path(machine) + "/volumes").json(mount)?;
        self.fetch(call).await
    }

    /// Takes a volume out of a machine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn detach_volume(
        &self,
        machine: &str,
        attachment: &str,
    ) -> Result<VolumeAttachment, Error> {
        let path = attachment_path(machine, attachment);
        self.fetch(Call::new(Method::DELETE, path)).await
    }

    /// Looks whether a volume is where it should be.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn check_volume(
        &self,
        machine: &str,
        attachment: &str,
    ) -> Result<VolumeAttachment, Error> {
        self.fetch(Call::get(attachment_path(machine, attachment) + "/health"))
            .await
    }

    /// Takes a volume out of a machine and puts it back.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remount_volume(
        &self,
        machine: &str,
        attachment: &str,
    ) -> Result<VolumeAttachment, Error> {
        self.fetch(Call::post(
            attachment_path(machine, attachment) + "/remount",
        ))
        .await
    }
}

fn reference_path(reference: &str) -> String {
    match reference.starts_with(id::VOLUME) {
        true => volume_path(reference),
        false => name_path(reference),
    }
}
