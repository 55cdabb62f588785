// SPDX-License-Identifier: GPL-3.0-or-later
//! Standard requests that do not go to the device as they are.

/// What has to go through the kernel's own calls, since it changes what the kernel here knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Reset,
    SetConfiguration(u8),
    SetInterface {
        interface: u8,
        setting: u8,
    },
    ClearHalt(u8),
    /// SET_CONFIGURATION(0): no endpoint but 0 until another SET_CONFIGURATION. Nothing is done: the kernel here keeps
    /// the device configured, or it would have no interfaces to hold on to.
    Unconfigure,
}

/// What to do with a control request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// The device's.
    Device,
    /// The kernel has given the device an address; the guest's is the backend's business.
    SetAddress,
    Operation(Operation),
    /// GET_CONFIGURATION.
    GetConfiguration,
}

/// What a SETUP packet asks for (USB 2.0 §9.3, §9.4).
pub(super) fn classify(setup: [u8; 8]) -> Request {
    const CLEAR_FEATURE: u8 = 1;
    const SET_ADDRESS: u8 = 5;
    const GET_CONFIGURATION: u8 = 8;
    const SET_CONFIGURATION: u8 = 9;
    const SET_INTERFACE: u8 = 11;
    const ENDPOINT_HALT: [u8; 2] = [0, 0];
    let [request_type, request, value, value_high, index, ..] = setup;
    let operation = match (request_type, request) {
        (0x00, SET_ADDRESS) => return Request::SetAddress,
        (0x80, GET_CONFIGURATION) => return Request::GetConfiguration,
        (0x00, SET_CONFIGURATION) if value == 0 => Operation::Unconfigure,
        (0x00, SET_CONFIGURATION) => Operation::SetConfiguration(value),
        (0x01, SET_INTERFACE) => Operation::SetInterface {
            interface: index,
            setting: value,
        },
        // Endpoint 0 has no halt to clear that the kernel would know of.
        (0x02, CLEAR_FEATURE) if [value, value_high] == ENDPOINT_HALT && index & 0x0f != 0 => {
            Operation::ClearHalt(index)
        }
        _ => return Request::Device,
    };
    Request::Operation(operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(request_type: u8, request: u8, value: u16, index: u16) -> Request {
        let [v0, v1] = value.to_le_bytes();
        let [i0, i1] = index.to_le_bytes();
        classify([request_type, request, v0, v1, i0, i1, 0, 0])
    }

    #[test]
    fn requests_that_the_kernel_must_know_of_are_intercepted() {
        assert_eq!(set(0x00, 5, 17, 0), Request::SetAddress);
        assert_eq!(set(0x80, 8, 0, 0), Request::GetConfiguration);
        let interface = Operation::SetInterface {
            interface: 1,
            setting: 3,
        };
        for (request, operation) in [
            (set(0x00, 9, 0, 0), Operation::Unconfigure),
            (set(0x00, 9, 2, 0), Operation::SetConfiguration(2)),
            (set(0x01, 11, 3, 1), interface),
            (set(0x02, 1, 0, 0x81), Operation::ClearHalt(0x81)),
        ] {
            assert_eq!(request, Request::Operation(operation));
        }
    }

    /// GET_DESCRIPTOR, a remote wake-up feature, class requests with the same numbers, a halt of
    /// endpoint 0, the setting of a halt.
    #[test]
    fn everything_else_is_the_devices() {
        for other in [
            set(0x80, 6, 0x100, 0),
            set(0x00, 1, 1, 0),
            set(0x21, 9, 0x200, 0),
            set(0x21, 11, 0, 0),
            set(0x02, 1, 0, 0x00),
            set(0x02, 3, 0, 0x81),
        ] {
            assert_eq!(other, Request::Device);
        }
    }
}
