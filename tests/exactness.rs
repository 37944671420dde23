//! smoke
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's way to fail")]
mod support;
use support::*;

#[test]
fn smoke() {
    for way in Way::ALL {
        let fake = Fake::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let chain = way.to(&fake);
        let mut client = chain.connect();
        assert_eq!(client.get("/x").text(), "ok");
        assert_eq!(client.post("/x", "hello").text(), "ok");
        println!("{}", String::from_utf8_lossy(&fake.request(1).head.bytes));
    }
}
