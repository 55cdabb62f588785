// SPDX-License-Identifier: GPL-3.0-or-later
//! Child processes that never outlive their parent.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a process may take to end after it was asked to.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// A running program, its standard error in a file. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`. `log` gets its standard error.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let stderr = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot make {}", log.display()))?;
        command.stderr(stderr);
        kill_with_parent(&mut command);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}: {:?}", command.get_program()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Its standard input, where that was piped. `None` the second time.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its standard output, where that was piped. `None` the second time.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its resident memory, in KiB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn rss_kib(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).context("the process has ended")?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let number = line.and_then(|l| l.trim().strip_suffix("kB"));
        let number = number.with_context(|| format!("no VmRSS in {path}"))?;
        Ok(number.trim().parse()?)
    }

    /// The processor time that its threads have used so far, by their names.
    ///
    /// # Errors
    /// When it has ended.
    pub fn thread_times(&self) -> Result<BTreeMap<String, Duration>> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let mut times: BTreeMap<String, Duration> = BTreeMap::new();
        for task in std::fs::read_dir(&tasks).context("the process has ended")? {
            let task = task?.path();
            // A thread may end while we look.
            let read = |file: &str| std::fs::read_to_string(task.join(file)).ok();
            let Some((name, times_of)) = read("comm").zip(read("schedstat")) else {
                continue;
            };
            let ran_ns = times_of.split(' ').next().and_then(|n| n.parse().ok());
            let ran = Duration::from_nanos(ran_ns.context("no time in schedstat")?);
            *times.entry(name.trim_end().to_owned()).or_default() += ran;
        }
        Ok(times)
    }

    /// Waits for a line on its standard output that starts with `word`.
    ///
    /// # Errors
    /// When it ends before.
    pub fn wait_for_line(&mut self, word: &str) -> Result<()> {
        let stdout = self
            .take_stdout()
            .with_context(|| format!("{} has no pipe", self.name))?;
        for line in BufReader::new(stdout).lines() {
            if line?.starts_with(word) {
                return Ok(());
            }
        }
        bail!("{} ended at once: {}", self.name, self.log_tail())
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// When the process ends before, or it takes too long.
    pub fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + END_TIMEOUT;
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}): {}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("{}: still not {what}: {}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end with SIGTERM and waits. Kills it when it does not.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM);
        self.wait()
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// When it does not, in time; it is killed then.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + END_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                bail!("{} does not end: {}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill has no memory effects; the child is not reaped yet, so that the number is
        // still its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of [`log`](Self::log).
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the kernel kill the child when the thread that starts it ends, however it ends. Signals that
/// this thread has blocked are not blocked there.
fn kill_with_parent(command: &mut Command) {
    // SAFETY: all three calls are async-signal-safe and touch nothing of the parent's; the set is
    // made before it is used.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            Ok(())
        });
    }
    command.stdin(Stdio::piped());
}
