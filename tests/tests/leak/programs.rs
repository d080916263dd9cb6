//! Whole programs that are called again and again: curl and the languages that the machine has.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    clients::{Curl, Language},
};

use crate::{HOST, NAME, pod::Pod, tally::Tally};

/// They should not be in the agent's way, but get more of the processor than the many callers.
const NICE: i32 = 10;

type Call<'a> = Box<dyn Fn() -> Result<String> + Send + Sync + 'a>;

/// A program that makes a request.
pub struct Program<'a> {
    name: String,
    call: Call<'a>,
    tally: Mutex<Tally>,
}

/// Calls programs in turn.
pub fn call(programs: &[Program<'_>], ended: &AtomicBool) {
    for program in programs.iter().cycle().take_while(|_| !ended.load(Ordering::Relaxed)) {
        let came = (program.call)().unwrap_or_else(|error| format!("{error:#}"));
        program.tally.lock().unwrap_or_else(PoisonError::into_inner).add(came);
    }
}

impl<'a> Program<'a> {
    /// For each thread that calls them its programs.
    pub fn all(bed: &'a TestBed, pods: &'a [Pod<'_>]) -> Vec<Vec<Self>> {
        let urls = [HOST, NAME].map(|host| format!("http://{host}/"));
        let curls = pods.iter().map(|pod| {
            let each = urls.iter().flat_map(|url| ["-4", "-6"].map(|family| (url.clone(), family)));
            each.map(|(url, family)| {
                let name = format!("{} curl {family} {url}", pod.netns.name());
                Self::new(name, move || {
                    let result = Curl::new(pod.command("curl")?.nice(NICE), &url).args([family]).run()?;
                    Ok(result
                        .statuses()
                        .first()
                        .map_or_else(|| format!("curl exits with {}", result.exit_code), u16::to_string))
                })
            })
            .collect()
        });
        let languages = Language::installed().into_iter().map(|language| {
            let each = urls.iter().cloned().map(|url| {
                Self::new(format!("{language:?} {url}"), move || {
                    let output = language.get(bed, &url)?.nice(NICE).run()?;
                    Ok(output.text().lines().next().map_or(output.stderr, str::to_owned))
                })
            });
            each.collect()
        });
        curls.chain(languages).collect()
    }

    /// Calls it once more, now that the agent serves. Fails unless it is answered, or if it ever was in clear.
    pub fn check(&self) -> Result<()> {
        let came = (self.call)()?;
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(came == "200", "{}: {came:?}, after {tally:?}", self.name);
        tally.check().with_context(|| self.name.clone())
    }

    fn new(name: String, call: impl Fn() -> Result<String> + Send + Sync + 'a) -> Self {
        Self { name, call: Box::new(call), tally: Mutex::default() }
    }
}
