//! Connections whose every byte is the test's own business.

use std::pin::Pin;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::http1::Transport;

/// What a script does with a connection. The connection is closed at its end.
pub type Script = Box<dyn FnOnce(Wire) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send>;

/// A connection right after the head of a request.
pub struct Wire {
    pub(super) received: Vec<u8>,
    pub(super) stream: Box<dyn Transport + Send>,
}

impl Wire {
    /// What comes next; nothing at the end.
    pub async fn read(&mut self) -> Result<Vec<u8>> {
        if self.received.is_empty() {
            self.stream.read_buf(&mut self.received).await?;
        }
        Ok(std::mem::take(&mut self.received))
    }

    /// Sends bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Says goodbye in the manner of TLS, or closes the sending side.
    pub async fn shutdown(&mut self) -> Result<()> {
        Ok(self.stream.shutdown().await?)
    }

    /// Lets the close be a reset.
    pub fn reset_on_close(&self) -> Result<()> {
        self.stream.reset_on_close()
    }
}

/// A script from an async closure.
pub fn script<F>(conversation: impl FnOnce(Wire) -> F + Send + 'static) -> Script
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    Box::new(move |wire| Box::pin(conversation(wire)))
}
