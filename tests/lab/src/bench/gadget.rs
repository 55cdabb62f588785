// SPDX-License-Identifier: GPL-3.0-or-later
//! Gadgets: devices that the exporter machine's kernel is on one side of `dummy_hcd`, and has on
//! the other.

use anyhow::{Result, bail};

use super::{DISK_BYTES, Kind};
use crate::agent::Agent;

/// `dummy_hcd` pairs, one for each gadget.
const PAIRS: u32 = 5;

/// A boot keyboard's report descriptor (HID 1.11, appendix B.1).
const KEYBOARD_REPORTS: [u8; 63] = [
    0x05, 0x01, 0x09, 0x06, 0xa1, 0x01, 0x05, 0x07, 0x19, 0xe0, 0x29, 0xe7, 0x15, 0x00, 0x25, 0x01,
    0x75, 0x01, 0x95, 0x08, 0x81, 0x02, 0x95, 0x01, 0x75, 0x08, 0x81, 0x01, 0x95, 0x05, 0x75, 0x01,
    0x05, 0x08, 0x19, 0x01, 0x29, 0x05, 0x91, 0x02, 0x95, 0x01, 0x75, 0x03, 0x91, 0x01, 0x95, 0x06,
    0x75, 0x08, 0x15, 0x00, 0x25, 0x65, 0x05, 0x07, 0x19, 0x00, 0x29, 0x65, 0x81, 0x00, 0xc0,
];

/// Bring a gadget up.
pub fn plug(agent: &Agent, kind: Kind) -> Result<()> {
    agent.must(&format!(
        "modprobe dummy_hcd num={PAIRS} && modprobe -a libcomposite && \
         (grep -q configfs /proc/mounts || mount -t configfs none /sys/kernel/config)"
    ))?;
    let (udc, product, function, settings) = match kind {
        Kind::SourceSinkGadget => (0, "0xa4a0", "SourceSink.0", String::new()),
        Kind::AcmGadget => (1, "0xa4a7", "acm.0", String::new()),
        Kind::HidGadget => {
            agent.put("/run/report_desc", 0o644, &KEYBOARD_REPORTS)?;
            (
                2,
                "0xa4ac",
                "hid.0",
                "echo 1 > $f/protocol; echo 1 > $f/subclass; echo 8 > $f/report_length; \
                 cat /run/report_desc > $f/report_desc"
                    .to_owned(),
            )
        }
        Kind::StorageGadget => (
            3,
            "0xa4a5",
            "mass_storage.0",
            format!(
                "dd if=/dev/zero of=/run/gadget.img bs=4096 count=0 seek={} 2>/dev/null; \
                 echo /run/gadget.img > $f/lun.0/file",
                DISK_BYTES / 4096
            ),
        ),
        Kind::PrinterGadget => (4, "0xa4a8", "printer.0", String::new()),
        _ => bail!("{} is no gadget", kind.name()),
    };
    let name = kind.name();
    agent.must(&format!(
        "set -e; g=/sys/kernel/config/usb_gadget/{name}; f=$g/functions/{function}; \
         mkdir -p $g/strings/0x409 $g/configs/c.1 $f; \
         echo 0x0525 > $g/idVendor; echo {product} > $g/idProduct; echo 0x0200 > $g/bcdUSB; \
         echo {name} > $g/strings/0x409/product; echo GADGET{udc} > $g/strings/0x409/serialnumber; \
         {settings}; ln -s $f $g/configs/c.1/; echo dummy_udc.{udc} > $g/UDC",
        settings = if settings.is_empty() {
            "true"
        } else {
            &settings
        },
    ))?;
    Ok(())
}
