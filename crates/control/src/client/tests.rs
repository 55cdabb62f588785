// SPDX-License-Identifier: GPL-3.0-or-later
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::UnixListener;

use super::*;

/// A socket's path of its own for each test, removed at the end.
struct Socket(PathBuf);

impl Socket {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "control-test-{}-{}.sock",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        Self(path)
    }

    /// Answers one caller with `answer`, whatever it asks, and returns what it asked.
    fn answer(&self, answer: Vec<u8>) -> tokio::task::JoinHandle<String> {
        let listener = UnixListener::bind(&self.0).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut asked = String::new();
            stream.read_line(&mut asked).await.unwrap();
            // A caller may have had enough of an endless answer.
            let _ = stream.get_mut().write_all(&answer).await;
            asked
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn line(response: &Response) -> Vec<u8> {
    let mut line = serde_json::to_vec(response).unwrap();
    line.push(b'\n');
    line
}

#[tokio::test]
async fn one_line_out_and_one_line_in() {
    let socket = Socket::new();
    let daemon = socket.answer(line(&Response::Attachments(vec![])));
    let answer = call(&socket.0, &Request::List).await.unwrap();
    assert_eq!(answer, Response::Attachments(vec![]));
    assert_eq!(daemon.await.unwrap(), "\"list\"\n");
}

#[tokio::test]
async fn a_refusal_is_an_answer() {
    let socket = Socket::new();
    let refusal = Response::Error("no domain 'web'; xl list shows what runs".into());
    let daemon = socket.answer(line(&refusal));
    let request = Request::Check {
        domain: "web".into(),
        toolstack: None,
        to: Vec::new(),
    };
    assert_eq!(call(&socket.0, &request).await.unwrap(), refusal);
    assert_eq!(
        daemon.await.unwrap(),
        "{\"check\":{\"domain\":\"web\",\"toolstack\":null,\"to\":[]}}\n"
    );
}

#[tokio::test]
async fn no_daemon_names_the_remedy() {
    let socket = Socket::new();
    let absent = call(&socket.0, &Request::List)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        absent.starts_with("vusbd is not running: systemctl start vusbd"),
        "{absent}"
    );
    // A socket that a killed daemon left behind.
    drop(UnixListener::bind(&socket.0).unwrap());
    let dead = call(&socket.0, &Request::List)
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(dead, absent);
}

#[tokio::test]
async fn a_caller_who_is_not_root_is_told_so() {
    let error = connect_error(
        Path::new("/run/x.sock"),
        io::ErrorKind::PermissionDenied.into(),
    );
    assert_eq!(
        error.to_string(),
        "/run/x.sock is for root only: run this as root"
    );
}

#[tokio::test]
async fn a_closed_connection_points_at_the_journal() {
    let socket = Socket::new();
    let _daemon = socket.answer(vec![]);
    let error = call(&socket.0, &Request::List).await.unwrap_err();
    assert!(matches!(error, ClientError::Closed(_)), "{error}");
    assert!(error.to_string().contains("journalctl -u vusbd"));
}

#[tokio::test]
async fn a_silent_daemon_is_given_up() {
    let socket = Socket::new();
    let _listener = UnixListener::bind(&socket.0).unwrap();
    let limit = Duration::from_millis(20);
    let error = call_within(&socket.0, &Request::List, limit)
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn nonsense_and_endless_answers_are_refused() {
    let socket = Socket::new();
    let _daemon = socket.answer(b"HTTP/1.1 400 Bad Request\r\n".to_vec());
    let error = call(&socket.0, &Request::List).await.unwrap_err();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
    assert!(error.to_string().contains("must be of one version"));
    assert!(!error.to_string().contains('\n'));

    let socket = Socket::new();
    let _daemon = socket.answer(vec![b' '; MAX_LINE_LEN + 2]);
    let error = call(&socket.0, &Request::List).await.unwrap_err();
    assert!(matches!(error, ClientError::TooLong(_)), "{error}");
}

#[tokio::test]
async fn an_unreadable_directory_is_no_missing_daemon() {
    // Root passes every permission check, so this can only be seen without it.
    let socket = Socket::new();
    let dir = socket.0.with_extension("dir");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o000)).unwrap();
    let result = call(&dir.join("vusbd.sock"), &Request::List).await;
    let as_root = std::fs::read_dir(&dir).is_ok();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::remove_dir(&dir).unwrap();
    match result.unwrap_err() {
        ClientError::Permission(_) => assert!(!as_root),
        ClientError::NotRunning(_) => assert!(as_root),
        other => panic!("{other}"),
    }
}
