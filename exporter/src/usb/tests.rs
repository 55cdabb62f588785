// SPDX-License-Identifier: GPL-3.0-or-later
use super::*;

#[test]
fn requests_that_the_kernel_must_know_of_are_intercepted() {
    let set = |request_type, request, value: u16, index: u16| {
        let [v0, v1] = value.to_le_bytes();
        let [i0, i1] = index.to_le_bytes();
        intercept([request_type, request, v0, v1, i0, i1, 0, 0])
    };
    assert_eq!(set(0x00, 5, 17, 0), Some(None), "SET_ADDRESS");
    let configuration = Operation::SetConfiguration(2);
    assert_eq!(set(0x00, 9, 2, 0), Some(Some(configuration)));
    assert_eq!(set(0x00, 9, 0, 0), Some(None));
    let interface = Operation::SetInterface {
        interface: 1,
        setting: 3,
    };
    assert_eq!(set(0x01, 11, 3, 1), Some(Some(interface)));
    assert_eq!(
        set(0x02, 1, 0, 0x81),
        Some(Some(Operation::ClearHalt(0x81)))
    );
    // Everything else is the device's: GET_DESCRIPTOR, a remote wake-up feature, class requests
    // with the same numbers, a halt of endpoint 0.
    for other in [
        set(0x80, 6, 0x100, 0),
        set(0x00, 1, 1, 0),
        set(0x21, 9, 0x200, 0),
        set(0x21, 11, 0, 0),
        set(0x02, 1, 0, 0x00),
    ] {
        assert_eq!(other, None);
    }
}
