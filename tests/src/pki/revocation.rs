//! Lists of certificates that are revoked.

use std::{
    ops::Range,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use rcgen::{
    CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, KeyIdMethod,
    RevokedCertParams, SerialNumber, date_time_ymd,
};

use super::{Authority, Pki};

impl Pki {
    /// The trusted authority's revocation list, made and due to be replaced at the beginning of these years.
    pub fn revocation_list(&self, revoked: &[u64], years: Range<i32>) -> Result<String> {
        self.trusted.revocation_list(revoked, made_in(years))
    }

    /// The same of nobody, due to be replaced after this time, in whole seconds.
    pub fn revocation_list_due_in(&self, validity: Duration) -> Result<String> {
        self.trusted.revocation_list(&[], |list| list.next_update = (SystemTime::now() + validity).into())
    }

    /// The same, in which no certificates but those of authorities are looked up.
    pub fn revocation_list_of_authorities_due_in(&self, validity: Duration) -> Result<String> {
        let uris = vec!["http://crl.example/authorities".to_owned()];
        self.trusted.revocation_list(&[], |list| {
            list.next_update = (SystemTime::now() + validity).into();
            list.issuing_distribution_point = Some(CrlIssuingDistributionPoint {
                distribution_point: CrlDistributionPoint { uris },
                scope: Some(CrlScope::CaCertsOnly),
            });
        })
    }

    /// The same of an authority that has not issued what is to be looked up.
    pub fn foreign_revocation_list(&self, years: Range<i32>) -> Result<String> {
        self.untrusted.revocation_list(&[], made_in(years))
    }
}

impl Authority {
    fn revocation_list(
        &self,
        revoked: &[u64],
        change: impl FnOnce(&mut CertificateRevocationListParams),
    ) -> Result<String> {
        let revoked_certs = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2019, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let mut list = CertificateRevocationListParams {
            this_update: date_time_ymd(2019, 1, 1),
            next_update: date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        change(&mut list);
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }
}

fn made_in(years: Range<i32>) -> impl FnOnce(&mut CertificateRevocationListParams) {
    move |list| {
        (list.this_update, list.next_update) = (date_time_ymd(years.start, 1, 1), date_time_ymd(years.end, 1, 1));
    }
}
