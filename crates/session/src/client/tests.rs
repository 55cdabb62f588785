// SPDX-License-Identifier: GPL-3.0-or-later
use super::*;
use crate::frame::{TransferStatus, TransferType};
use crate::open::How;

fn bulk(endpoint: u8, length: u32) -> Transfer {
    let transfer_type = TransferType::Bulk;
    Transfer {
        transfer_type,
        endpoint,
        flags: 0,
        length,
        interval: 0,
        setup: [0; 8],
    }
}

fn submit(client: &mut Client, transfer: &Transfer) -> u64 {
    client
        .submit(transfer, |out| {
            out.resize(out.len() + transfer.submit_body_len(), 7);
            Ok::<(), ()>(())
        })
        .unwrap()
}

fn completion(request: u64, number: u64, actual_length: u32, body: &[u8]) -> Vec<u8> {
    let status = TransferStatus::Completed;
    let c = Completion {
        request,
        number,
        status,
        actual_length,
        error_count: 0,
        start_frame: 0,
    };
    let mut out = Vec::new();
    frame::encode_complete(&mut out, &c, body.len());
    out.extend_from_slice(body);
    out
}

#[test]
fn a_request_carries_the_last_completion_as_its_acknowledgement() {
    let mut client = Client::new(Epoch(1));
    let request = submit(&mut client, &bulk(0x81, 512));
    client.output().clear();
    let input = completion(request, 1, 3, b"abc");
    let (event, len) = client.next_event(&input).unwrap().unwrap();
    assert!(matches!(event, Event::Completed { body: b"abc", .. }));
    assert_eq!(len, input.len());
    submit(&mut client, &bulk(0x02, 4));
    let sent = std::mem::take(client.output());
    let (header, body) = frame::decode(&sent).unwrap().unwrap();
    assert!(matches!(
        header,
        Header::Submit {
            request: 2,
            ack: 1,
            ..
        }
    ));
    assert_eq!(body, [7; 4]);
    client.acknowledge();
    assert!(
        client.output().is_empty(),
        "the request acknowledged it already"
    );
}

#[test]
fn a_lone_completion_is_acknowledged_once() {
    let mut client = Client::new(Epoch(1));
    let request = submit(&mut client, &bulk(0x81, 512));
    client.output().clear();
    client.next_event(&completion(request, 1, 0, &[])).unwrap();
    client.acknowledge();
    client.acknowledge();
    let sent = std::mem::take(client.output());
    assert_eq!(sent.len(), HEADER_LEN);
    assert_eq!(
        frame::decode(&sent).unwrap().unwrap().0,
        Header::Ack { ack: 1 }
    );
}

#[test]
fn after_a_lost_connection_only_what_did_not_arrive_is_sent_again() {
    let mut client = Client::new(Epoch(4));
    let first = submit(&mut client, &bulk(0x02, 8));
    let second = submit(&mut client, &bulk(0x02, 8));
    client.lost();
    let third = submit(&mut client, &bulk(0x02, 8));
    client.cancel(second);
    assert!(
        client.output().is_empty(),
        "nothing is sent without a connection"
    );
    assert_eq!(
        client.resume(),
        How::Resume {
            epoch: Epoch(4),
            completions_received: 0
        }
    );
    client.resumed(first).unwrap();
    let unsent: Vec<_> = client.unsent(first).collect();
    assert_eq!(unsent, [second, third]);
    for request in unsent {
        let fill = |out: &mut Vec<u8>| {
            out.extend_from_slice(&[9; 8]);
            Ok::<(), ()>(())
        };
        client.resend(request, &bulk(0x02, 8), fill).unwrap();
    }
    client.resend_cancels();
    let sent = std::mem::take(client.output());
    let frame_len = HEADER_LEN + 8;
    assert!(matches!(
        frame::decode(&sent).unwrap().unwrap().0,
        Header::Submit { request: 2, .. }
    ));
    let rest = &sent[2 * frame_len..];
    assert!(matches!(
        frame::decode(rest).unwrap().unwrap().0,
        Header::Cancel { request: 2, .. }
    ));
}

#[test]
fn a_completion_twice_or_out_of_turn_is_an_error() {
    let mut client = Client::new(Epoch(1));
    let request = submit(&mut client, &bulk(0x81, 8));
    let skipped = completion(request, 2, 0, &[]);
    assert_eq!(
        client.next_event(&skipped),
        Err(ClientError::CompletionNumber {
            got: 2,
            expected: 1
        })
    );
    client.next_event(&completion(request, 1, 0, &[])).unwrap();
    assert_eq!(
        client.next_event(&completion(request, 2, 0, &[])),
        Err(ClientError::UnknownRequest(request))
    );
}

#[test]
fn more_data_than_was_asked_for_is_an_error() {
    let mut client = Client::new(Epoch(1));
    let request = submit(&mut client, &bulk(0x81, 2));
    let error = ClientError::TooMuchData {
        request,
        len: 3,
        limit: 2,
    };
    assert_eq!(
        client.next_event(&completion(request, 1, 2, b"abc")),
        Err(error.clone())
    );
    assert_eq!(
        client.next_event(&completion(request, 1, 3, b"ab")),
        Err(error)
    );
}

#[test]
fn an_exporter_that_has_more_than_was_sent_is_refused() {
    let mut client = Client::new(Epoch(1));
    client.lost();
    assert_eq!(
        client.resumed(1),
        Err(ClientError::Received { got: 1, last: 0 })
    );
}

#[test]
fn a_failed_fill_leaves_no_trace() {
    let mut client = Client::new(Epoch(1));
    let result = client.submit(&bulk(0x02, 8), |out| {
        out.push(1);
        Err("dead grant")
    });
    assert_eq!(result, Err("dead grant"));
    assert!(client.output().is_empty());
    assert_eq!(client.outstanding(), 0);
    assert_eq!(submit(&mut client, &bulk(0x02, 8)), 1);
}

#[test]
fn a_restored_client_goes_on_where_it_stopped() {
    // Requests 1 to 6 were sent. Completions 1 and 2 are settled; 3 and 6 are waited for; of 5
    // nobody knows any more, and the third completion is settled but was not counted.
    let known = [(6, None), (3, Some(bulk(0x81, 512)))];
    let mut client = Client::restore(Epoch(7), 6, 2, known).unwrap();
    let epoch = Epoch(7);
    assert_eq!(
        client.resume(),
        How::Resume {
            epoch,
            completions_received: 2
        }
    );
    client.resumed(4).unwrap();
    assert_eq!(client.unsent(4).collect::<Vec<_>>(), [5, 6]);
    // 1 or 2, and 3.
    for (number, request) in [(3, 2), (4, 3)] {
        let body: &[u8] = if request == 3 { b"abc" } else { b"" };
        let input = completion(request, number, body.len() as u32, body);
        client.next_event(&input).unwrap().unwrap();
    }
    assert_eq!(
        (client.completions_received(), client.outstanding()),
        (4, 2)
    );
    // No more strangers than there can be.
    let input = completion(1, 5, 0, b"");
    let unknown = client.next_event(&input);
    assert_eq!(unknown, Err(ClientError::UnknownRequest(1)));
}

#[test]
fn numbers_that_contradict_each_other_restore_nothing() {
    let known = |request| [(request, None)];
    assert!(Client::restore(Epoch(1), 5, 6, []).is_none());
    assert!(Client::restore(Epoch(1), 5, 5, known(5)).is_none());
    assert!(Client::restore(Epoch(1), 5, 4, known(6)).is_none());
    assert!(Client::restore(Epoch(1), 5, 4, known(0)).is_none());
    assert!(Client::restore(Epoch(1), 500, 0, []).is_none());
}
