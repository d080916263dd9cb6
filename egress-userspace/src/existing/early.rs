//! Datagram sockets that were connected to a name server before what they are told could be read.

use std::{
    collections::{HashMap, HashSet},
    mem,
    path::{Path, PathBuf},
};

use crate::netns::{NetnsCookie, sock_diag::SocketCookie};

/// Finds them once: the kernel does not tell which of those that there are at another time the hooks have seen.
#[derive(Default)]
pub(super) struct Early {
    found: HashSet<SocketCookie>,
    /// Cgroups where they are still to be found.
    unread: Vec<PathBuf>,
    /// The same, where they are being looked for.
    looked: Vec<PathBuf>,
    /// The same in single namespaces, which could not be looked at.
    missed: HashMap<NetnsCookie, Vec<PathBuf>>,
}

impl Early {
    /// What is connected to a name server in these cgroups when it is looked for next counts as too early.
    pub(super) fn expect(&mut self, cgroups: Vec<PathBuf>) {
        self.unread.extend(cgroups);
    }

    /// They are being looked for.
    pub(super) fn look(&mut self) {
        self.looked = mem::take(&mut self.unread);
    }

    /// Takes in what was found: the sockets of all namespaces that are connected to name servers, and the namespaces that could not be
    /// looked at. Those are looked at the next time.
    pub(super) fn take_in<'a>(
        &mut self,
        askers: impl Iterator<Item = (NetnsCookie, SocketCookie, &'a Path)>,
        missed: &[NetnsCookie],
    ) {
        let (looked, before) = (mem::take(&mut self.looked), mem::take(&mut self.missed));
        let scopes = |netns| looked.iter().chain(before.get(&netns).into_iter().flatten());
        let new = askers.filter(|(netns, _, cgroup)| scopes(*netns).any(|scope| cgroup.starts_with(scope)));
        self.found.extend(new.map(|(_, socket, _)| socket));
        self.missed = missed.iter().map(|&netns| (netns, scopes(netns).cloned().collect())).collect();
    }

    /// Whether a socket is one of them.
    pub(super) fn has(&self, socket: SocketCookie) -> bool {
        self.found.contains(&socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(early: &mut Early, askers: &[(NetnsCookie, u8, &str)], missed: &[NetnsCookie]) -> Vec<u8> {
        early.look();
        early.take_in(askers.iter().map(|(netns, socket, cgroup)| (*netns, [*socket; 8], Path::new(*cgroup))), missed);
        (1..=9).filter(|socket| early.has([*socket; 8])).collect()
    }

    #[test]
    fn where_a_look_fails_another_one_finds_them_and_elsewhere_no_others() {
        const NONE: [u8; 0] = [];
        let mut early = Early::default();
        let [one, two] = [NetnsCookie(1), NetnsCookie(2)];
        assert_eq!(look(&mut early, &[(one, 1, "/scope/pod")], &[]), NONE, "none were expected");
        early.expect(vec!["/scope".into()]);
        assert_eq!(look(&mut early, &[(one, 2, "/scope/pod"), (one, 3, "/other")], &[two]), [2]);
        assert_eq!(look(&mut early, &[(one, 4, "/scope/pod")], &[two]), [2], "the hooks have seen it");
        let found = look(&mut early, &[(one, 5, "/scope/pod"), (two, 6, "/scope/pod"), (two, 7, "/other")], &[]);
        assert_eq!(found, [2, 6]);
        assert_eq!(look(&mut early, &[(two, 8, "/scope/pod")], &[]), [2, 6]);
    }
}
