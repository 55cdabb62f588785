// SPDX-License-Identifier: GPL-3.0-or-later
//! A device of which a program on the exporter's machine holds an interface: a gadget with two keyboards.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use session::control::Refusal;
use usbfs::Device as Node;

use super::*;

const CONFIGFS: &str = "/sys/kernel/config/usb_gadget";
/// A boot keyboard (HID 1.11, appendix B.1), as short as Linux takes it.
const REPORT: [u8; 21] = [
    5, 1, 9, 6, 0xa1, 1, 5, 7, 0x19, 0xe0, 0x29, 0xe7, 0x75, 1, 0x95, 8, 0x81, 2, 0xc0, 0, 0,
];

/// On `dummy_hcd`. It is gone when this is dropped.
struct Gadget(PathBuf);

impl Gadget {
    fn new() -> Self {
        let dir = Path::new(CONFIGFS).join("xen-vusb-held");
        fs::create_dir_all(&dir).expect("no configfs, or no libcomposite");
        let gadget = Self(dir.clone());
        let write = |name: &str, value: &[u8]| fs::write(dir.join(name), value).expect(name);
        write("idVendor", b"0x1209");
        write("idProduct", b"0x0009");
        fs::create_dir_all(dir.join("strings/0x409")).unwrap();
        write("strings/0x409/product", b"Two keyboards");
        fs::create_dir_all(dir.join("configs/c.1")).unwrap();
        for number in 0..2 {
            let function = dir.join(format!("functions/hid.{number}"));
            fs::create_dir_all(&function).expect("no usb_f_hid");
            fs::write(function.join("report_length"), "8").unwrap();
            fs::write(function.join("report_desc"), &REPORT[..19]).unwrap();
            symlink(&function, dir.join(format!("configs/c.1/hid.{number}"))).unwrap();
        }
        let controllers = fs::read_dir("/sys/class/udc").expect("no dummy_hcd");
        let controller = controllers.flatten().next().expect("no dummy_hcd");
        write("UDC", controller.file_name().as_encoded_bytes());
        gadget
    }

    /// Where it is plugged in, when its drivers have it.
    fn place() -> String {
        let start = Instant::now();
        loop {
            for entry in fs::read_dir("/sys/bus/usb/devices").unwrap().flatten() {
                let product = fs::read_to_string(entry.path().join("product"));
                let place = entry.file_name().to_string_lossy().into_owned();
                if product.is_ok_and(|p| p.trim() == "Two keyboards")
                    && (0..2).all(|i| driver(&place, i).is_some())
                {
                    return place;
                }
            }
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "it does not appear"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Gadget {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("UDC"), "\n");
        for number in 0..2 {
            let _ = fs::remove_file(self.0.join(format!("configs/c.1/hid.{number}")));
            let _ = fs::remove_dir(self.0.join(format!("functions/hid.{number}")));
        }
        let _ = fs::remove_dir(self.0.join("configs/c.1"));
        let _ = fs::remove_dir(self.0.join("strings/0x409"));
        let _ = fs::remove_dir(&self.0);
    }
}

/// Defect 26. It is not lent, it says why, and the interface that the exporter could have had has its driver again.
#[test]
#[ignore = "needs root, dummy_hcd, libcomposite, usb_f_hid and usbhid"]
fn a_device_that_a_program_uses_keeps_its_other_drivers() {
    let gadget = Gadget::new();
    let place = Gadget::place();
    let number = |name: &str| {
        let text = fs::read_to_string(format!("/sys/bus/usb/devices/{place}/{name}"));
        text.unwrap().trim().parse().unwrap()
    };
    let path = Node::path(number("busnum"), number("devnum"));
    let program = Node::open(&path).unwrap();
    program.disconnect_claim(1).unwrap();
    check_drivers(&place, &[Some("usbhid"), Some("usbfs")]);
    run(async {
        let pool = Pool::new();
        let exporter = pool.start_with_usb(ALLOW_ALL);
        let mut control = exporter.control(&pool.identity("host-a")).await;
        let lend = Request::Acquire(wanted(&place, vm(1), 1));
        match control.ask(lend.clone()).await {
            Reply::Refused(Refusal::Unavailable { reason, .. }) => {
                println!("{reason}");
                assert!(reason.contains("stop that program first"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        check_drivers(&place, &[Some("usbhid"), Some("usbfs")]);
        drop(program);
        assert!(matches!(control.ask(lend).await, Reply::Lease(_)));
        check_drivers(&place, &[Some("usbfs"); 2]);
    });
    drop(gadget);
}
