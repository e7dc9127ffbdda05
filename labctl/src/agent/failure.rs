//! What can go wrong with a lab, and what it means for labctl's exit code.

use crate::exit;
use tonic::{Code, Status};

/// Why the agent could not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The request makes no sense: no such lab, node or link, or a topology with mistakes.
    #[error("{0}")]
    Usage(String),
    /// The machine lacks something.
    #[error("{0}")]
    Machine(String),
    /// A daemon, namespace or device did not do its part.
    #[error("{0}")]
    Deploy(String),
    /// The one who asked has gone.
    #[error("interrupted")]
    Cancelled,
}

impl Failure {
    /// labctl's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::Machine(_) => exit::MACHINE,
            Self::Deploy(_) | Self::Cancelled => exit::DEPLOY,
        }
    }

    /// A failure of deployment.
    pub fn deploy(error: impl std::fmt::Display) -> Self {
        Self::Deploy(error.to_string())
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let code = match failure {
            Failure::Usage(_) => Code::InvalidArgument,
            Failure::Machine(_) => Code::FailedPrecondition,
            Failure::Deploy(_) => Code::Internal,
            Failure::Cancelled => Code::Cancelled,
        };
        Status::new(code, failure.to_string())
    }
}
