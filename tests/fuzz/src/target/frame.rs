// SPDX-License-Identifier: GPL-3.0-or-later
//! Bytes of a device connection, at both ends.

use session::Epoch;
use session::client::{self, Client};
use session::frame::{
    self, Completion, FLAG_SHORT_NOT_OK, Header, Kind, MAX_BODY_LEN, Transfer, TransferStatus,
    TransferType,
};
use session::server::{self, Outcome, Server};

use crate::{Input, Target};

/// See the module's documentation.
pub const TARGET: Target = Target {
    name: "frame",
    seeds,
    run,
};

fn seeds() -> Vec<Vec<u8>> {
    let mut from_backend = vec![0];
    let transfer = Transfer {
        transfer_type: TransferType::Bulk,
        endpoint: 2,
        flags: FLAG_SHORT_NOT_OK,
        length: 3,
        interval: 0,
        setup: [0; 8],
    };
    frame::encode_submit(&mut from_backend, 1, 0, &transfer);
    from_backend.extend(b"abc");
    for kind in [
        Kind::Freeze,
        Kind::Thaw,
        Kind::Orphan,
        Kind::Ping,
        Kind::ResumeYes,
    ] {
        frame::encode_plain(&mut from_backend, kind, 0, 0, &[]);
    }
    frame::encode_plain(&mut from_backend, Kind::Cookie, 0, 0, &[1, 5, 3]);
    frame::encode_plain(&mut from_backend, Kind::Reset, 2, 0, &[]);
    frame::encode_plain(&mut from_backend, Kind::Cancel, 1, 0, &[]);
    frame::encode_plain(&mut from_backend, Kind::Ack, 0, 0, &[]);
    let mut from_exporter = vec![1];
    let completion = Completion {
        request: 1,
        number: 1,
        status: TransferStatus::Completed,
        actual_length: 2,
        error_count: 0,
        start_frame: 0,
    };
    frame::encode_complete(&mut from_exporter, &completion, 2);
    from_exporter.extend(b"xy");
    for kind in [Kind::Ping, Kind::Pong, Kind::Gone, Kind::Fenced] {
        frame::encode_plain(&mut from_exporter, kind, 0, 0, &[]);
    }
    vec![from_backend, from_exporter]
}

fn run(input: &mut Input<'_>) {
    let to_client = input.chance(1) || input.byte() & 1 == 1;
    let bytes = input.rest();
    recode(bytes);
    match to_client {
        true => client(bytes, input),
        false => server(bytes, input),
    }
}

/// What was decoded is encoded to something that decodes to the same.
fn recode(bytes: &[u8]) {
    let Ok(Some((header, body))) = frame::decode(bytes) else {
        return;
    };
    assert!(body.len() <= MAX_BODY_LEN);
    let mut again = Vec::new();
    match &header {
        Header::Submit {
            request,
            ack,
            transfer,
        } => frame::encode_submit(&mut again, *request, *ack, transfer),
        Header::Complete(completion) => frame::encode_complete(&mut again, completion, body.len()),
        Header::Cancel { request, ack } => {
            frame::encode_plain(&mut again, Kind::Cancel, *request, *ack, &[]);
        }
        Header::Keep { request, ack } => {
            frame::encode_plain(&mut again, Kind::Keep, *request, *ack, &[]);
        }
        Header::Recall { request, ack } => {
            frame::encode_plain(&mut again, Kind::Recall, *request, *ack, &[]);
        }
        Header::Reset { request, ack } => {
            frame::encode_plain(&mut again, Kind::Reset, *request, *ack, &[]);
        }
        Header::Ack { ack } => frame::encode_plain(&mut again, Kind::Ack, 0, *ack, &[]),
        Header::Plain(kind) => frame::encode_plain(&mut again, *kind, 0, 0, body),
    }
    if !matches!(header, Header::Plain(_)) {
        again.extend_from_slice(body);
    }
    assert_eq!(frame::decode(&again), Ok(Some((header, body))));
}

fn server(mut bytes: &[u8], input: &mut Input<'_>) {
    let mut server = Server::new(Epoch(1));
    drop(server.claim(Epoch(2)));
    loop {
        match server.next_event(bytes) {
            Ok(Some((event, len))) => {
                input.did((0, std::mem::discriminant(&event)));
                let done = match event {
                    server::Event::Submit {
                        request,
                        transfer,
                        body,
                    } => {
                        assert_eq!(body.len(), transfer.submit_body_len());
                        (request % 3 != 0).then_some(request)
                    }
                    server::Event::Reset { request } | server::Event::Cancel { request } => {
                        Some(request)
                    }
                    server::Event::Keep { request } => {
                        server.keep(request, Some(8));
                        Some(request)
                    }
                    server::Event::Recall { request } => {
                        server.recall(request, Some(8));
                        Some(request)
                    }
                    _ => None,
                };
                if let Some(request) = done {
                    let outcome = Outcome::new(TransferStatus::Completed, 70_000);
                    // More than anybody asked for: must be cut.
                    let fill = |out: &mut Vec<u8>| out.resize(out.len() + MAX_BODY_LEN + 1, 0);
                    server.complete(Epoch(2), request, outcome, fill);
                }
                bytes = &bytes[len..];
            }
            Ok(None) => break,
            Err(e) => {
                input.did((1, std::mem::discriminant(&e)));
                break;
            }
        }
    }
    assert!(server.executing() <= server::MAX_OPEN);
    let mut output = server.output();
    while let Some((_, body)) = frame::decode(output).expect("what we send is frames") {
        output = &output[frame::HEADER_LEN + body.len()..];
    }
    assert!(output.is_empty());
}

fn client(mut bytes: &[u8], input: &mut Input<'_>) {
    let mut client = Client::new(Epoch(2));
    for endpoint in [0x81, 2, 0x81] {
        let transfer = Transfer {
            transfer_type: TransferType::Bulk,
            endpoint,
            flags: 0,
            length: 2,
            interval: 0,
            setup: [0; 8],
        };
        let fill = |out: &mut Vec<u8>| {
            out.resize(out.len() + transfer.submit_body_len(), 0);
            Ok::<_, ()>(())
        };
        client.submit(&transfer, fill).unwrap();
    }
    let mut left = client.outstanding();
    loop {
        match client.next_event(bytes) {
            Ok(Some((event, len))) => {
                input.did((2, std::mem::discriminant(&event)));
                if let client::Event::Completed { completion, body } = event {
                    assert!(body.len() <= 2 && completion.actual_length <= 2);
                    left -= 1;
                }
                assert_eq!(client.outstanding(), left);
                bytes = &bytes[len..];
            }
            Ok(None) => break,
            Err(e) => {
                input.did((3, std::mem::discriminant(&e)));
                break;
            }
        }
    }
}
