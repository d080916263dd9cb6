//! Requests without pause.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::TcpStream,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::{
    request::{Request, read_response},
    target::Target,
};

const LOWEST_PRIORITY: libc::c_int = 19;

/// How long one who counts waits after a failure.
const AFTER_FAILURE: Duration = Duration::from_millis(1);

/// How often a status or an error came.
type Tally = Arc<Mutex<BTreeMap<String, u64>>>;

/// Requests in a thread of its own, so that it ends with standard input whatever a request waits for.
pub(crate) fn repeat(mut target: Target, request: Request, keep_alive: bool, count: bool) -> Result<()> {
    target.quiet = true;
    let tally = Tally::default();
    let counted = Arc::clone(&tally);
    if count {
        io::stdin().read_line(&mut String::new())?;
        println!("{{}}");
    }
    thread::spawn(move || {
        if count {
            // SAFETY: no memory is involved. 0 stands for the calling thread: the other one answers when it is asked.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST_PRIORITY) };
        }
        let mut kept = None;
        loop {
            let came = exchange(&target, &request, keep_alive, &mut kept);
            let failed = came.is_err();
            let came = came.unwrap_or_else(|error| format!("{error:#}"));
            if !count {
                println!("{came}");
                continue;
            }
            *counted.lock().expect("no panic").entry(came).or_default() += 1;
            if failed {
                // Many that are refused would otherwise leave nothing of the machine to the agent that they wait for.
                thread::sleep(AFTER_FAILURE);
            }
        }
    });
    for line in io::stdin().lines() {
        line?;
        if count {
            println!("{}", serde_json::to_string(&*tally.lock().expect("no panic"))?);
        }
    }
    Ok(())
}

/// The status that comes.
fn exchange(target: &Target, request: &Request, keep_alive: bool, kept: &mut Option<TcpStream>) -> Result<String> {
    let bytes = request.bytes(!keep_alive);
    let mut stream = match kept.take() {
        Some(mut stream) => {
            stream.write_all(&bytes)?;
            stream
        }
        None => target.connect(&bytes)?,
    };
    let response = read_response(&mut stream)?;
    let text = String::from_utf8_lossy(&response).to_ascii_lowercase();
    if keep_alive && !text.contains("\r\nconnection: close\r\n") {
        *kept = Some(stream);
    }
    Ok(text.get(9..12).unwrap_or_default().to_owned())
}
