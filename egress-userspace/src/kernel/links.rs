//! Attaching programs to cgroups.

use std::fs::File;

use aya::programs::{
    CgroupAttachMode, CgroupSkbAttachType, Program, ProgramError,
    cgroup_skb::CgroupSkbLinkId,
    cgroup_sock::CgroupSockLinkId,
    cgroup_sock_addr::CgroupSockAddrLinkId,
    links::{FdLink, LinkError},
    sock_ops::SockOpsLinkId,
};

/// A link that its program owns.
pub(super) enum Attached {
    SockAddr(CgroupSockAddrLinkId),
    Sock(CgroupSockLinkId),
    SockOps(SockOpsLinkId),
    Skb(CgroupSkbLinkId),
}

/// Attaches a program. The link lasts as long as the program, unless it is taken.
pub(super) fn attach(program: &mut Program, cgroup: &File) -> Result<Attached, ProgramError> {
    // Links are always "multi"; any other mode is refused with EINVAL.
    let mode = CgroupAttachMode::Single;
    match program {
        Program::CgroupSockAddr(program) => program.attach(cgroup, mode).map(Attached::SockAddr),
        Program::CgroupSock(program) => program.attach(cgroup, mode).map(Attached::Sock),
        Program::SockOps(program) => program.attach(cgroup, mode).map(Attached::SockOps),
        Program::CgroupSkb(program) => program.attach(cgroup, CgroupSkbAttachType::Ingress, mode).map(Attached::Skb),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

impl Attached {
    /// Takes the link from its program.
    pub(super) fn take(self, program: &mut Program) -> Result<FdLink, ProgramError> {
        let link = match (self, program) {
            (Self::SockAddr(id), Program::CgroupSockAddr(program)) => program.take_link(id)?.try_into(),
            (Self::Sock(id), Program::CgroupSock(program)) => program.take_link(id)?.try_into(),
            (Self::SockOps(id), Program::SockOps(program)) => program.take_link(id)?.try_into(),
            (Self::Skb(id), Program::CgroupSkb(program)) => program.take_link(id)?.try_into(),
            _ => return Err(ProgramError::UnexpectedProgramType),
        };
        // Kernels without cgroup links are older than any that the programs load on.
        link.map_err(|_: LinkError| ProgramError::UnexpectedProgramType)
    }
}
