//! A channel and a byte stream of the machine, joined: files over SFTP, and ports both ways.

use std::{pin::pin, time::Duration};

use bytes::{Bytes, BytesMut};
use nullspace_protocol::BoxedIo;
use russh::{Channel, ChannelMsg, ChannelWriteHalf, server::Msg};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::{
    gate::{Meter, Share},
    handler::Client,
};

/// Bytes read at once.
const PIECE: usize = 64 << 10;
/// How long a machine may take for what is left when a client has closed.
const LINGER: Duration = Duration::from_secs(30);
/// What a message counts beside its content.
pub(super) const SMALL: usize = 128;

/// What a client sends.
pub(super) enum Input {
    /// Bytes; counted until they are dropped.
    Data(Bytes, Share),
    /// There will be no more.
    Eof,
}

/// What a client has sent and nobody has taken yet. The connection's meter bounds it.
pub(super) type Inputs = mpsc::UnboundedReceiver<Input>;

/// Joins the two until either is closed.
pub(super) async fn join(client: &Client, channel: Channel<Msg>, io: BoxedIo) {
    let (mut read, write) = channel.split();
    let (inputs, waiting) = mpsc::unbounded_channel();
    let closed = CancellationToken::new();
    let listening = async move {
        while let Some(message) = read.wait().await {
            match message {
                ChannelMsg::Data { data } => take(&client.meter, &inputs, data),
                ChannelMsg::Eof => {
                    let _ = inputs.send(Input::Eof);
                }
                ChannelMsg::Close => return,
                _ => {}
            }
        }
    };
    let mut carrying = pin!(carry(client, io, &write, waiting, &closed));
    tokio::select! {
        () = listening => {
            // A client that closes has sent everything; the machine may still be taking it.
            closed.cancel();
            let _ = tokio::time::timeout(LINGER, carrying).await;
        }
        () = &mut carrying => {
            let _ = write.close().await;
        }
    }
}

/// Lets what came wait.
pub(super) fn take(
    meter: &std::sync::Arc<Meter>,
    inputs: &mpsc::UnboundedSender<Input>,
    data: Bytes,
) {
    let share = meter.add(data.len() + SMALL);
    let _ = inputs.send(Input::Data(data, share));
}

/// Carries bytes both ways until both directions have ended; outward also when the channel is `closed`.
pub(super) async fn carry(
    client: &Client,
    io: BoxedIo,
    write: &ChannelWriteHalf<Msg>,
    mut inputs: Inputs,
    closed: &CancellationToken,
) {
    let (mut from, mut to) = tokio::io::split(io);
    let inward = async {
        let mut is_open = true;
        while let Some(input) = inputs.recv().await {
            match input {
                // What nobody wants any more is dropped, so that it does not wait for ever.
                Input::Data(data, _share) => is_open = is_open && to.write_all(&data).await.is_ok(),
                Input::Eof => break,
            }
        }
        let _ = to.shutdown().await;
    };
    let outward = async {
        let mut out = write.make_writer();
        let mut buffer = BytesMut::with_capacity(PIECE);
        while let Ok(1..) = from.read_buf(&mut buffer).await {
            let piece = buffer.split();
            if client.meter.writing(out.write_all(&piece)).await.is_err() {
                return;
            }
            buffer.reserve(PIECE);
        }
        let _ = write.eof().await;
    };
    tokio::join!(inward, closed.run_until_cancelled(outward));
}
