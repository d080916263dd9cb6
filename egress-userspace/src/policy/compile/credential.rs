//! What the `Secret` of a `credentialName` says: whom to trust, what they have revoked, and who we are.

use super::{
    Reports,
    index::{Index, StoreKind},
    namespaces::Namespace,
};
use crate::{
    config::{Code, Located, destination_rule::Credential},
    policy::{ClientIdentity, Pem, Roots},
};

/// What is in the `Secret`.
pub(super) struct Found {
    pub(super) roots: Roots,
    pub(super) crl: Option<Located<Pem>>,
    pub(super) client: Option<ClientIdentity>,
}

/// Looks where Istio does: for authorities and their revocation lists in the `Secret` of the name and `-cacert`, then in the one
/// of the name, for the client certificate in that alone.
pub(super) fn look_up<'d>(
    credential: &'d Credential,
    namespace: Namespace<'d>,
    index: &Index<'d>,
    reports: &mut Reports,
) -> Found {
    let name = credential.name.value.as_str();
    let of_authorities = format!("{name}-cacert");
    let (both, own) = ([of_authorities.as_str(), name], [name]);
    if !both.iter().any(|name| index.store(StoreKind::Secret, namespace, name).is_some()) {
        let place = index.place_without_store(StoreKind::Secret, namespace, name);
        let text = format!("there is no Secret {name} {place}; add it");
        reports.at(&credential.name, Code::UnknownCredential.because(text));
        return Found { roots: Roots::System, crl: None, client: None };
    }
    let mut take = |names: &[&str], keys: [&str; 2]| take(credential, names, keys, namespace, index, reports);
    let roots = take(&both, ["ca.crt", "cacert"]);
    let crl = take(&both, ["ca.crl", "crl"]);
    let [certificate, key] = if credential.is_mutual {
        [take(&own, ["tls.crt", "cert"]), take(&own, ["tls.key", "key"])]
    } else {
        [None, None]
    };
    if roots.is_none() {
        let text = format!(
            "neither Secret {name} nor {of_authorities} has ca.crt, which Istio needs: the system's roots are trusted in its \
             stead; add it"
        );
        reports.at(&credential.name, Code::Credential.because(text));
    }
    let absent = [("tls.crt", certificate.is_none()), ("tls.key", key.is_none())];
    for (what, _) in absent.iter().filter(|(_, is_absent)| credential.is_mutual && *is_absent) {
        let text = format!("Secret {name} has no {what}, as MUTUAL needs; add it");
        reports.at(&credential.name, Code::UnknownCredential.because(text));
    }
    Found {
        roots: roots.map_or(Roots::System, Roots::File),
        crl,
        client: certificate.zip(key).map(|(certificate, key)| ClientIdentity { certificate, key }),
    }
}

/// What is under one of the keys in one of the `Secret`s. Where there are several they must be the same: which one counts is not
/// a question that anybody should have to ask.
fn take(
    credential: &Credential,
    names: &[&str],
    keys: [&str; 2],
    namespace: Namespace<'_>,
    index: &Index<'_>,
    reports: &mut Reports,
) -> Option<Located<Pem>> {
    let mut found = names.iter().flat_map(|name| {
        let store = index.store(StoreKind::Secret, namespace, name);
        keys.iter().filter_map(move |key| Some((format!("{key} of Secret {name}"), store?.entries.get(*key)?)))
    });
    let (called, content) = found.next()?;
    if let Some((other, _)) = found.find(|(_, other)| *other != content) {
        let text = format!("{called} and {other} are not the same; remove one of them");
        reports.at(&credential.name, Code::Conflict.because(text));
    }
    Some(credential.name.with(Pem::Inline { name: called.into(), content: content.clone() }))
}
