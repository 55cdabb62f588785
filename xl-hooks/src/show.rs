// SPDX-License-Identifier: GPL-3.0-or-later
//! What the daemon answers, as text for people.

use control::{
    Attachment, Controller, Counters, ExportedDevice, ExporterStatus, Forecast, HostForecast,
    PoolHost, Response, SeenHost, Status, Toolstack,
};
use session::{
    DeviceInfo, DeviceState, LeasePhase, OnMigrate, OwnController, Speed, StashCounters,
};

use crate::table::{Table, printable};

#[cfg(test)]
mod tests;

/// `response` as lines of text, each with its newline. [`Response::Error`] is one line.
pub fn text(response: &Response) -> String {
    match response {
        Response::Exporters(exporters) => exporter_table(exporters),
        Response::Devices {
            devices,
            unreachable,
        } => device_table(devices) + &unreachable_lines(unreachable),
        Response::Attached(attachment) => format!(
            "attached {}; on migration: {}{}\n{}",
            place(attachment, "to"),
            migration(attachment),
            exchange(attachment),
            persistence(attachment)
        ),
        Response::Released {
            exporter,
            device,
            vm_name,
        } => format!(
            "released {exporter}/{} ({}), which {} had\n",
            device.id,
            printable(&device.name),
            printable(vm_name)
        ),
        Response::Detached(attachment) if attachment.host.is_none() => format!(
            "detached {} from {}, which is off ({}), controller {} port {}\n",
            described(attachment),
            printable(&attachment.vm_name),
            attachment.vm,
            attachment.controller,
            attachment.port
        ),
        Response::Detached(attachment) => format!("detached {}\n", place(attachment, "from")),
        Response::ControllerAdded(controller) => format!(
            "made controller {} of {} with {} ports, USB {}; attach devices with --controller {}\n",
            controller.controller,
            printable(&controller.vm_name),
            controller.ports,
            controller.usb_version,
            controller.controller
        ),
        Response::ControllerRemoved(controller) => format!(
            "removed controller {} of {}\n",
            controller.controller,
            printable(&controller.vm_name)
        ),
        Response::Controllers(controllers) => controller_table(controllers),
        Response::Attachments(attachments) => attachment_table(attachments),
        Response::Status(status) => status_text(status),
        Response::Check(forecasts) => forecast_table(forecasts),
        Response::Hosts { hosts, unreachable } => {
            host_table(hosts) + &unreachable_lines(unreachable)
        }
        Response::Forgotten { host, exporters } => format!(
            "forgot host {} at {}\n",
            printable(host),
            printable(&exporters.join(", "))
        ),
        Response::Error(error) => printable(error) + "\n",
    }
}

/// One line for each device and host that forbid a migration, with the remedy.
pub fn refusals(forecasts: &[Forecast]) -> Vec<String> {
    let mut lines = Vec::new();
    for forecast in forecasts.iter().filter(|f| f.outcome.forbids()) {
        let device = format!(
            "{}, controller {} port {}",
            described(&forecast.attachment),
            forecast.attachment.controller,
            forecast.attachment.port
        );
        if forecast.hosts.is_empty() {
            lines.push(format!("{device}: {}", printable(&forecast.reason)));
        }
        for host in forecast.hosts.iter().filter(|h| h.outcome.forbids()) {
            let reason = printable(&host.reason);
            lines.push(format!("to {}: {device}: {reason}", printable(&host.host)));
        }
    }
    lines
}

fn exporter_table(exporters: &[ExporterStatus]) -> String {
    if exporters.is_empty() {
        return "no exporters: add an [[exporter]] to /etc/xen-vusb/vusbd.toml\n".into();
    }
    let mut table = Table::new(["EXPORTER", "ADDRESS", "STATE"]);
    for exporter in exporters {
        table.row([
            exporter.name.clone(),
            exporter.address.clone(),
            exporter.error.clone().unwrap_or_else(|| "ok".into()),
        ]);
    }
    table.render()
}

fn unreachable_lines(exporters: &[ExporterStatus]) -> String {
    let line = |exporter: &ExporterStatus| {
        format!(
            "exporter {} ({}) does not answer: {}\n",
            printable(&exporter.name),
            printable(&exporter.address),
            printable(exporter.error.as_deref().unwrap_or("no reason known"))
        )
    };
    exporters.iter().map(line).collect()
}

fn device_table(devices: &[ExportedDevice]) -> String {
    if devices.is_empty() {
        return "no devices\n".into();
    }
    let mut table = Table::new(["DEVICE", "ID", "SERIAL", "SPEED", "STATE", "NAME"]);
    for ExportedDevice { exporter, device } in devices {
        table.row([
            format!("{exporter}/{}", device.id),
            id(device),
            device.serial.clone().unwrap_or_else(|| "-".into()),
            speed(device.speed).into(),
            state(&device.state),
            device.name.clone(),
        ]);
    }
    table.render()
}

fn attachment_table(attachments: &[Attachment]) -> String {
    if attachments.is_empty() {
        return "nothing attached\n".into();
    }
    // Of this host only, or of VMs that are off and of other hosts, too.
    let host = &attachments[0].host;
    match host.is_some() && attachments.iter().all(|a| a.host == *host) {
        true => attachment_rows(attachments),
        false => all_attachment_rows(attachments),
    }
}

const OFF: &str = "-";

fn all_attachment_rows(attachments: &[Attachment]) -> String {
    let mut table = Table::new([
        "VM", "UUID", "HOST", "DOMID", "CTRL", "PORT", "DEVICE", "ID", "PHASE", "NAME",
    ]);
    for attachment in attachments {
        let domid = attachment.domid.to_string();
        table.row([
            attachment.vm_name.clone(),
            attachment.vm.to_string(),
            attachment.host.clone().unwrap_or_else(|| OFF.into()),
            attachment.host.as_ref().map_or(OFF.into(), |_| domid),
            attachment.controller.to_string(),
            attachment.port.to_string(),
            format!("{}/{}", attachment.exporter, attachment.device.id),
            id(&attachment.device),
            phase(attachment).into(),
            attachment.device.name.clone(),
        ]);
    }
    let notes: String = attachments.iter().filter_map(note).collect();
    table.render() + &notes
}

fn attachment_rows(attachments: &[Attachment]) -> String {
    let mut table = Table::new([
        "DOMAIN",
        "DOMID",
        "CTRL",
        "PORT",
        "DEVICE",
        "ID",
        "MIGRATION",
        "PHASE",
        "NAME",
    ]);
    for attachment in attachments {
        table.row([
            attachment.vm_name.clone(),
            attachment.domid.to_string(),
            attachment.controller.to_string(),
            attachment.port.to_string(),
            format!("{}/{}", attachment.exporter, attachment.device.id),
            id(&attachment.device),
            migration(attachment).into(),
            phase(attachment).into(),
            attachment.device.name.clone(),
        ]);
    }
    let notes: String = attachments.iter().filter_map(note).collect();
    table.render() + &notes
}

fn status_text(status: &Status) -> String {
    let mut counters = Table::new([
        "DEVICE",
        "URBS",
        "ANSWERED",
        "ERRORS",
        "UNLINKED",
        "BYTES OUT",
        "BYTES IN",
        "RECONNECTS",
    ]);
    let mut stashes = Table::new(["DEVICE", "KEPT", "DELIVERED", "DROPPED", "OVERFLOWED"]);
    for attachment in &status.attachments {
        let device = format!("{}/{}", attachment.exporter, attachment.device.id);
        counters.row(counter_row(device.clone(), &attachment.counters));
        let stash = attachment.stash;
        if stash != StashCounters::default() {
            stashes.row([
                device,
                stash.kept.to_string(),
                stash.delivered.to_string(),
                stash.discarded.to_string(),
                stash.overflowed.to_string(),
            ]);
        }
    }
    let any_stash = |a: &Attachment| a.stash != StashCounters::default();
    let stashes = match status.attachments.iter().any(any_stash) {
        true => format!(
            "\nsent while the guest was suspended:\n{}",
            stashes.render()
        ),
        false => String::new(),
    };
    counters.row(counter_row("since start".into(), &status.totals));
    format!(
        "vusbd {} on {}\n\n{}\n{}\n{}\n{}{stashes}",
        printable(&status.version),
        printable(&status.host),
        exporter_table(&status.exporters),
        controller_table(&status.controllers),
        attachment_table(&status.attachments),
        counters.render(),
    )
}

fn counter_row(of: String, counters: &Counters) -> [String; 8] {
    [
        of,
        counters.urbs.to_string(),
        counters.answered.to_string(),
        counters.errors.to_string(),
        counters.unlinked.to_string(),
        counters.bytes_out.to_string(),
        counters.bytes_in.to_string(),
        counters.reconnects.to_string(),
    ]
}

fn controller_table(controllers: &[Controller]) -> String {
    if controllers.is_empty() {
        return "no controllers: a guest's config needs usbctrl=['type=pv,version=2,ports=4'], or run \
                `xl-vusb controller add DOMAIN`\n"
            .into();
    }
    let mut table = Table::new([
        "DOMAIN", "DOMID", "CTRL", "PORTS", "FRONTEND", "BACKEND", "HAND-OFF", "RESUMES",
    ]);
    for controller in controllers {
        table.row([
            controller.vm_name.clone(),
            controller.domid.to_string(),
            controller.controller.to_string(),
            controller.ports.to_string(),
            controller.frontend.clone(),
            controller.backend.clone(),
            controller.hand_off.clone(),
            if controller.frontend_resumes {
                "yes"
            } else {
                "no"
            }
            .into(),
        ]);
    }
    table.render()
}

fn forecast_table(forecasts: &[Forecast]) -> String {
    if forecasts.is_empty() {
        return "no devices attached: nothing stands in the way of a migration\n".into();
    }
    let mut table = Table::new(["HOST", "STATE", "DEVICE", "CTRL", "PORT", "OUTCOME", "WHY"]);
    let mut row = |host: &str, state: &str, forecast: &Forecast, outcome, reason: &str| {
        table.row([
            host.to_owned(),
            state.to_owned(),
            described(&forecast.attachment),
            forecast.attachment.controller.to_string(),
            forecast.attachment.port.to_string(),
            format!("{outcome}"),
            reason.to_owned(),
        ]);
    };
    let on_hosts = forecasts
        .iter()
        .flat_map(|f| f.hosts.iter().map(move |h| (h, f)));
    let mut on_hosts: Vec<(&HostForecast, &Forecast)> = on_hosts.collect();
    // Stable: the devices of a host stay in their order.
    on_hosts.sort_by(|(one, _), (other, _)| one.host.cmp(&other.host));
    for (host, forecast) in on_hosts {
        let state = seen(host.connected, host.seen_seconds);
        row(&host.host, &state, forecast, host.outcome, &host.reason);
    }
    for forecast in forecasts.iter().filter(|f| f.hosts.is_empty()) {
        row("-", "-", forecast, forecast.outcome, &forecast.reason);
    }
    table.render()
}

/// Whether an exporter has a host's vusbd connected, or when it had last.
fn seen(connected: bool, seen_seconds: Option<u64>) -> String {
    match (connected, seen_seconds) {
        (true, _) => "connected".to_owned(),
        (false, Some(seconds)) => format!("last seen {} ago", duration(seconds)),
        (false, None) => "never seen".to_owned(),
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn host_table(hosts: &[PoolHost]) -> String {
    if hosts.is_empty() {
        return "no hosts: no exporter that answers has had one connected\n".into();
    }
    let mut table = Table::new(["HOST", "EXPORTER", "STATE", "VUSBD"]);
    for PoolHost { name, seen: at } in hosts {
        for SeenHost {
            exporter,
            connected,
            seen_seconds,
            version,
            makes_controllers: _,
        } in at
        {
            table.row([
                name.clone(),
                exporter.clone(),
                seen(*connected, Some(*seen_seconds)),
                version.clone().unwrap_or_else(|| "-".into()),
            ]);
        }
    }
    table.render()
}

fn place(attachment: &Attachment, preposition: &str) -> String {
    format!(
        "{} {preposition} {} (domain {}), controller {} port {}",
        described(attachment),
        printable(&attachment.vm_name),
        attachment.domid,
        attachment.controller,
        attachment.port
    )
}

/// `pi4/1-1.2 (Kingston DataTraveler)`.
fn described(attachment: &Attachment) -> String {
    let Attachment {
        exporter, device, ..
    } = attachment;
    let name = if device.name.is_empty() {
        id(device)
    } else {
        device.name.clone()
    };
    printable(&format!("{exporter}/{} ({name})", device.id))
}

fn note(attachment: &Attachment) -> Option<String> {
    let note = attachment.note.as_deref()?;
    Some(format!("{}: {}\n", described(attachment), printable(note)))
}

/// What a migration does to it on a host where everything is as it should be; `check` knows more.
fn migration(attachment: &Attachment) -> &'static str {
    let is_own = attachment.controller >= OwnController::FIRST_DEVID;
    if !is_own && attachment.toolstack != Toolstack::Xl {
        return "lost";
    }
    if attachment.frontend_resumes {
        return "seamless";
    }
    match attachment.on_migrate {
        // Nothing waits for vusbd on the host that the VM goes to.
        OnMigrate::Refuse if is_own => "lost",
        OnMigrate::Refuse => "refuse",
        OnMigrate::Replug => "replug",
        OnMigrate::Risk => "risk",
    }
}

/// What happens when the device is pulled out.
fn exchange(attachment: &Attachment) -> String {
    let waits = |e: session::Exchange| match attachment.persistence.is_persistent() {
        true => "without a limit".to_owned(),
        false => format!("{} s", e.seconds),
    };
    let text = |e: session::Exchange| format!("; pulled out: {}, waits {}", e.on, waits(e));
    attachment.exchange.map_or_else(String::new, text)
}

/// What a persistent attachment means, in lines of their own.
fn persistence(attachment: &Attachment) -> String {
    if !attachment.persistence.is_persistent() {
        return String::new();
    }
    let vm = printable(&attachment.vm_name);
    let place = format!(
        "{}/{}",
        printable(&attachment.exporter),
        attachment.device.id
    );
    let mut text = format!(
        "persistent: the device is reserved for {vm} also while it is off; `xl-vusb detach {vm} {}` ends that\n",
        attachment.port
    );
    let at_place = attachment.exchange.is_some_and(|e| e.at_place);
    match attachment.device.identity() {
        _ if at_place => text += &format!("whatever is plugged in at {place} is attached\n"),
        None => {
            text += &format!(
                "the device has no serial number, so it is known by its place: only at {place} it is \
                 attached again\n"
            );
        }
        Some(_) => {}
    }
    if attachment.toolstack == Toolstack::Xl {
        text += &format!(
            "`xl create` gives a VM a new uuid unless its configuration has one, and the attachment is \
             for this uuid: make sure that it has uuid = \"{}\"\n",
            attachment.vm
        );
    }
    text
}

fn id(device: &DeviceInfo) -> String {
    format!("{:04x}:{:04x}", device.vendor, device.product)
}

fn speed(speed: Speed) -> &'static str {
    match speed {
        Speed::Low => "low",
        Speed::Full => "full",
        Speed::High => "high",
        Speed::Super => "super",
    }
}

fn phase(attachment: &Attachment) -> &'static str {
    match attachment.phase {
        // It waits for nothing but the VM's start.
        LeasePhase::Orphaned if attachment.persistence.is_persistent() => "off",
        LeasePhase::Serving => "serving",
        LeasePhase::Frozen => "frozen",
        LeasePhase::Orphaned => "orphaned",
        LeasePhase::Saved => "saved",
        LeasePhase::Disconnected => "disconnected",
        LeasePhase::Absent => "waiting",
    }
}

fn state(state: &DeviceState) -> String {
    match state {
        DeviceState::Free => "free".into(),
        DeviceState::Leased { vm_name, .. } => format!("in use by {vm_name}"),
        DeviceState::Unavailable { reason } => reason.clone(),
    }
}
