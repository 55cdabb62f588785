// SPDX-License-Identifier: GPL-3.0-or-later
//! What a migration would do to one attachment. It knows only what it is given.

use control::{Attachment, Forecast, HostForecast, Outcome, Toolstack};
use session::hosts::{KnownHost, Software};
use session::{OnMigrate, OwnController};

use super::duration;

#[cfg(test)]
mod tests;

/// Which migration is meant.
pub(super) struct Question<'a> {
    /// The host that the VM is on.
    pub here: &'a str,
    /// What is to migrate it.
    pub by: Toolstack,
}

/// What the device's exporter says of a host.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seen<'a> {
    /// The exporter does not answer, and why.
    Silent(&'a str),
    /// It has never been connected.
    Never,
    /// It is or was connected.
    Known(&'a KnownHost),
}

/// An outcome, and its reason with the remedy.
type Verdict = (Outcome, String);

/// The forecast for one attachment, on each of these hosts.
pub(super) fn of<'a>(
    question: &Question<'_>,
    attachment: Attachment,
    hosts: impl Iterator<Item = (&'a str, Seen<'a>)>,
) -> Forecast {
    if attachment.elsewhere {
        return not_here(attachment);
    }
    let guest = guest_part(question, &attachment);
    let hosts = hosts.map(|(host, seen)| {
        let (outcome, reason) = on_host(question, &attachment, &guest, host, seen);
        let (connected, seen_seconds, software) = match seen {
            Seen::Known(k) => (k.connected, Some(k.seen_seconds), k.software.as_ref()),
            Seen::Silent(_) | Seen::Never => (false, None, None),
        };
        HostForecast {
            host: host.to_owned(),
            connected,
            seen_seconds,
            version: software.map(|s| s.version.clone()),
            outcome,
            reason,
        }
    });
    let hosts: Vec<_> = hosts.collect();
    // The first of the worst.
    let worst = hosts.iter().rev().max_by_key(|h| h.outcome);
    let (outcome, reason) = match worst {
        Some(worst) => (worst.outcome, worst.reason.clone()),
        // Nothing is known of any host, so what would happen is what happens where there is no vusbd.
        None if guest.0.forbids() => guest,
        None => (
            nobody_there(question.by, &attachment),
            format!(
                "no other host has ever been connected to exporter {}: start vusbd on the host that the VM is \
                 to go to, with this exporter in its vusbd.toml",
                attachment.exporter
            ),
        ),
    };
    Forecast {
        attachment,
        outcome,
        reason,
        hosts,
    }
}

/// A domain that waits for a device of another one with the same uuid.
fn not_here(attachment: Attachment) -> Forecast {
    let where_it_is = attachment.note.clone().unwrap_or_else(|| {
        "another domain with the same uuid has the device, and this one waits for it".to_owned()
    });
    Forecast {
        outcome: Outcome::Elsewhere,
        reason: format!("this domain does not have the device: {where_it_is}"),
        attachment,
        hosts: Vec::new(),
    }
}

/// What happens where nothing serves the device. `xl` waits for `vusbd` on the host that the VM goes to, and
/// gives up, where it made the controller; nobody waits for one of our own.
fn nobody_there(by: Toolstack, attachment: &Attachment) -> Outcome {
    match is_made_again(by, attachment) {
        true => Outcome::Refused,
        false => Outcome::Lost,
    }
}

/// Whether the toolstack makes the controller again on the host that the VM goes to. Else `vusbd` there has to.
fn is_made_again(by: Toolstack, attachment: &Attachment) -> bool {
    by == Toolstack::Xl && attachment.controller < OwnController::FIRST_DEVID
}

/// What happens on a host where everything is as it should be.
fn guest_part(question: &Question<'_>, attachment: &Attachment) -> Verdict {
    let Attachment {
        on_migrate,
        frontend_resumes,
        vm_name,
        controller,
        ..
    } = attachment;
    let stock = "the guest's frontend cannot resume (no feature-resume)";
    let load = "load the xen-vusb-hcd module in the guest";
    let detach = detach(question, attachment);
    let resumes = *frontend_resumes || *on_migrate == OnMigrate::Risk;
    let seamless = || {
        let why = match frontend_resumes {
            true => "the guest's frontend reconnects inside its resume".to_owned(),
            false => format!("{stock}, but it was attached with --on-migrate risk"),
        };
        (Outcome::Seamless, why)
    };
    let made_again = is_made_again(question.by, attachment);
    let is_own = *controller >= OwnController::FIRST_DEVID;
    match (resumes, on_migrate) {
        (true, _) if made_again || is_own => seamless(),
        (false, OnMigrate::Replug) if made_again || is_own => {
            (Outcome::Replug, format!("{stock}; {load} to avoid it"))
        }
        (false, _) if made_again => (
            Outcome::Refused,
            format!(
                "{stock}; {load}, or run {detach} first, or attach the device with --on-migrate replug"
            ),
        ),
        (false, _) if is_own => (
            Outcome::Lost,
            format!(
                "{stock}, and a migration cannot be refused by a controller that vusbd made; {load}, or run \
                 {detach} first"
            ),
        ),
        _ => (
            Outcome::Lost,
            format!(
                "{}, so the guest would lose the device; run {detach} first, and attach the device to a \
                 controller of `xl-vusb controller add {vm_name}`",
                not_made_again(question.by)
            ),
        ),
    }
}

/// The command that takes the device away from the guest, and where.
fn detach(question: &Question<'_>, attachment: &Attachment) -> String {
    let Attachment {
        vm_name,
        port,
        controller,
        ..
    } = attachment;
    let which = match controller {
        0 => String::new(),
        devid => format!(" --controller {devid}"),
    };
    format!(
        "`xl-vusb detach {vm_name} {port}{which}` on {}",
        question.here
    )
}

fn not_made_again(by: Toolstack) -> &'static str {
    match by {
        Toolstack::Xapi => "XAPI makes no PV USB controller on the host that the VM goes to",
        Toolstack::Libvirt => "libvirt makes no PV USB controller on the host that the VM goes to",
        Toolstack::Xl | Toolstack::Unknown => {
            "this PV USB controller was not made by libxl, and no toolstack makes it again on the host that the \
             VM goes to"
        }
    }
}

/// What happens on this host.
fn on_host(
    question: &Question<'_>,
    attachment: &Attachment,
    guest: &Verdict,
    host: &str,
    seen: Seen<'_>,
) -> Verdict {
    let Attachment {
        exporter, device, ..
    } = attachment;
    let or_detach = format!("or run {} first", detach(question, attachment));
    let known = match seen {
        Seen::Silent(why) => {
            let reason = format!(
                "exporter {exporter} does not answer, so nobody knows whether {host} reaches it: {why}"
            );
            return (nobody_there(question.by, attachment), reason);
        }
        Seen::Never => {
            let reason = format!(
                "{host} has never been connected to exporter {exporter}: name the exporter in vusbd.toml there and \
                 start vusbd, {or_detach}"
            );
            return (Outcome::Lost, reason);
        }
        Seen::Known(known) => known,
    };
    if known.refused.contains(&device.id) {
        let reason = format!(
            "the policy of exporter {exporter} does not allow the device to this VM on {host}: add an [[allow]] to \
             its exporter.toml, {or_detach}"
        );
        return (Outcome::Lost, reason);
    }
    if !known.connected {
        let reason = format!(
            "vusbd of {host} is not connected to exporter {exporter}, last seen {} ago: start it, or run `xl-vusb \
             hosts forget {host}` if that host is gone for good",
            duration(known.seen_seconds)
        );
        return (nobody_there(question.by, attachment), reason);
    }
    let makes = known.software.as_ref().is_some_and(|s| s.makes_controllers);
    if !is_made_again(question.by, attachment) && !makes {
        let version = |s: &Software| format!("vusbd {}", s.version);
        let vusbd = known.software.as_ref().map_or("vusbd".to_owned(), version);
        let reason = format!(
            "{}, and {vusbd} of {host} makes none either, so the guest would lose the device; run a newer vusbd \
             there, {or_detach}{}",
            not_made_again(question.by),
            match question.by {
                Toolstack::Libvirt => ", or migrate with `xl migrate`",
                _ => "",
            }
        );
        return (Outcome::Lost, reason);
    }
    guest.clone()
}
