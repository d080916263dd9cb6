//! The names that one may stand for, as in resolv.conf(5).

use foldhash::HashSet;
use hickory_resolver::{config::ResolverConfig, proto::rr::Name};

/// Where names are looked for that are not fully qualified.
pub(super) struct Search {
    domains: Vec<Name>,
    /// How many dots a name has to have to be looked for as it is first.
    dots: usize,
}

impl Search {
    /// In the domains of `config`; names with this many dots as they are first.
    pub(super) fn new(config: &ResolverConfig, dots: usize) -> Self {
        let mut domains = config.search().to_vec();
        if domains.is_empty() {
            domains.extend(config.domain().cloned());
        }
        Self { domains, dots }
    }

    /// The names that `name` may stand for, in the order to look them up.
    pub(super) fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut as_it_is = name.clone();
        as_it_is.set_fqdn(true);
        if name.is_fqdn() {
            return vec![as_it_is];
        }
        let mut candidates = Vec::new();
        let within = self.domains.iter().filter_map(|domain| name.clone().append_domain(domain).ok());
        if usize::from(name.num_labels()) > self.dots || name.is_localhost() {
            candidates.push(as_it_is);
            candidates.extend(within);
        } else {
            candidates.extend(within);
            candidates.push(as_it_is);
        }
        // The root may be among the domains.
        let mut before = HashSet::default();
        candidates.retain(|name| before.insert(name.clone()));
        candidates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_for_as_resolv_conf_has_it() {
        let name = |text| Name::from_ascii(text).expect("a name");
        let of = |text, dots| {
            let domains = ["a.example", "b.example", "."].map(name).into();
            let search = Search::new(&ResolverConfig::from_parts(Some(name("c.example")), domains, Vec::new()), dots);
            search.candidates(&name(text)).iter().map(Name::to_ascii).collect::<Vec<_>>()
        };
        assert_eq!(of("proxy", 1), ["proxy.a.example.", "proxy.b.example.", "proxy."]);
        assert_eq!(of("proxy", 0), ["proxy.", "proxy.a.example.", "proxy.b.example."]);
        assert_eq!(of("proxy.corp", 1), ["proxy.corp.", "proxy.corp.a.example.", "proxy.corp.b.example."]);
        assert_eq!(of("proxy.corp", 2), ["proxy.corp.a.example.", "proxy.corp.b.example.", "proxy.corp."]);
        assert_eq!(of("proxy.corp.", 2), ["proxy.corp."]);
    }

    #[test]
    fn the_domain_counts_where_none_is_to_be_searched() {
        let name = |text| Name::from_ascii(text).expect("a name");
        let search = Search::new(&ResolverConfig::from_parts(Some(name("c.example")), Vec::new(), Vec::new()), 1);
        assert_eq!(search.candidates(&name("proxy")), [name("proxy.c.example."), name("proxy.")]);
    }
}
