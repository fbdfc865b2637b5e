//! Reading a machine's question, and writing the reply to it. Pure; what is read is hostile.

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode},
    rr::{DNSClass, Name, Record, RecordType},
};

/// The largest query taken over UDP, in bytes.
pub(crate) const MAX_UDP_QUERY: usize = 4096;

/// The largest reply given over UDP, in bytes: what fits through common paths in one piece.
const MAX_UDP_REPLY: u16 = 1232;

const HEADER: usize = 12;

/// One plain question.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    id: u16,
    /// As asked; programs may compare the case.
    pub(crate) name: Name,
    /// The name as [`crate::Policy`] sees it; empty for the root. None if a label has other characters:
    /// a dot inside a label would read as a different name there than here.
    pub(crate) text: Option<String>,
    pub(crate) kind: RecordType,
    recursion_desired: bool,
    edns: bool,
    /// Most bytes that the machine takes over UDP.
    payload: u16,
}

/// What a question is answered with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    /// For answers that say no: the record that says for how long.
    pub(crate) authority: Vec<Record>,
}

impl Answer {
    pub(crate) fn code(code: ResponseCode) -> Self {
        Self {
            code,
            answers: Vec::new(),
            authority: Vec::new(),
        }
    }

    /// The name exists and has no record of the kind.
    pub(crate) fn empty() -> Self {
        Self::code(ResponseCode::NoError)
    }

    pub(crate) fn records(answers: Vec<Record>) -> Self {
        Self {
            code: ResponseCode::NoError,
            answers,
            authority: Vec::new(),
        }
    }
}

/// What to do with bytes that are not a question to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No reply: too short to have a header, or a reply itself (replying to those makes loops).
    Drop,
    /// This reply, never longer than the query.
    Reply(Vec<u8>),
}

/// How the query came and the reply goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Reads one query.
pub(crate) fn read(bytes: &[u8]) -> Result<Query, Refused> {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return Err(Refused::Drop);
    };
    let [id_high, id_low, flags, ..] = *header;
    if flags & 0x80 != 0 {
        return Err(Refused::Drop);
    }
    let refuse = |code: ResponseCode| {
        let mut reply = [0u8; HEADER];
        reply[..2].copy_from_slice(&[id_high, id_low]);
        // A response with the query's opcode and recursion bit, and nothing but the code.
        reply[2] = 0x80 | (flags & 0x79);
        reply[3] = 0x80 | code.low();
        Refused::Reply(reply.to_vec())
    };
    if (flags >> 3) & 0x0f != u8::from(OpCode::Query) {
        return Err(refuse(ResponseCode::NotImp));
    }
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // Looked at before parsing: the parser makes room for as many records as the header claims.
    if count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > 2 {
        return Err(refuse(ResponseCode::FormErr));
    }
    let Ok(mut message) = Message::from_vec(bytes) else {
        return Err(refuse(ResponseCode::FormErr));
    };
    let Some(question) = message.take_queries().pop() else {
        return Err(refuse(ResponseCode::FormErr));
    };
    // 128 to 255 are not kinds of records but of questions: transfers, ANY, signatures.
    if question.query_class() != DNSClass::IN
        || matches!(u16::from(question.query_type()), 0 | 128..=255)
    {
        return Err(refuse(ResponseCode::Refused));
    }
    Ok(Query {
        id: message.id(),
        text: plain(question.name()),
        name: question.name().clone(),
        kind: question.query_type(),
        recursion_desired: message.recursion_desired(),
        edns: message.extensions().is_some(),
        payload: message.max_payload().clamp(512, MAX_UDP_REPLY),
    })
}

/// The name in lower case without the final dot, if every label is made of letters, digits, `-`, `_`.
fn plain(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(64);
    for label in name.iter() {
        if label.is_empty()
            || !label
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    Some(text)
}

/// Writes the reply. One that is too long for the transport says so and holds no records, and the
/// machine asks again over TCP.
pub(crate) fn reply(query: &Query, answer: Answer, transport: Transport) -> Option<Vec<u8>> {
    let mut message = Message::new();
    message
        .set_id(query.id)
        .set_message_type(MessageType::Response)
        .set_op_code(OpCode::Query)
        .set_recursion_desired(query.recursion_desired)
        .set_recursion_available(true)
        .set_response_code(answer.code)
        .add_query(Question::query(query.name.clone(), query.kind))
        .add_answers(answer.answers)
        .add_name_servers(answer.authority);
    if query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_REPLY);
        message.set_edns(edns);
    }
    let limit = match transport {
        Transport::Udp => usize::from(query.payload),
        Transport::Tcp => usize::from(u16::MAX),
    };
    match message.to_vec() {
        Ok(bytes) if bytes.len() <= limit => Some(bytes),
        _ => message
            .truncate()
            .to_vec()
            .ok()
            .filter(|bytes| bytes.len() <= limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::{RData, rdata};
    use proptest::prelude::*;

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new();
        message.set_id(7).set_recursion_desired(true);
        message.add_query(Question::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn code(refused: Refused) -> u8 {
        match refused {
            Refused::Reply(bytes) => {
                assert_eq!(bytes.len(), HEADER);
                Message::from_vec(&bytes).unwrap();
                bytes[3] & 0x0f
            }
            Refused::Drop => panic!("dropped"),
        }
    }

    #[test]
    fn a_plain_question_is_read() {
        let query = read(
            &question("WWW.Example.COM.", RecordType::A)
                .to_vec()
                .unwrap(),
        )
        .unwrap();
        assert_eq!(query.text.as_deref(), Some("www.example.com"));
        assert_eq!(
            (query.kind, query.payload, query.edns),
            (RecordType::A, 512, false)
        );
    }

    #[test]
    fn a_dot_inside_a_label_makes_no_other_name() {
        let name = Name::from_labels([b"allowed.example".as_slice(), b"com"]).unwrap();
        let mut message = Message::new();
        message.add_query(Question::query(name, RecordType::A));
        assert_eq!(read(&message.to_vec().unwrap()).unwrap().text, None);
    }

    #[test]
    fn what_is_no_question_is_refused() {
        let refused = |change: &dyn Fn(&mut Message)| {
            let mut message = question("example.com.", RecordType::A);
            change(&mut message);
            read(&message.to_vec().unwrap()).unwrap_err()
        };
        assert_eq!(
            code(refused(&|m| {
                m.set_op_code(OpCode::Update);
            })),
            4
        );
        assert_eq!(
            code(refused(&|m| {
                m.take_queries();
            })),
            1
        );
        assert_eq!(
            code(refused(&|m| {
                let q = m.queries()[0].clone();
                m.add_query(q);
            })),
            1
        );
        assert_eq!(
            code(refused(&|m| {
                m.queries_mut()[0].set_query_type(RecordType::AXFR);
            })),
            5
        );
        assert_eq!(
            code(refused(&|m| {
                m.queries_mut()[0].set_query_type(RecordType::ANY);
            })),
            5
        );
        assert_eq!(
            code(refused(&|m| {
                m.queries_mut()[0].set_query_class(DNSClass::CH);
            })),
            5
        );
        assert_eq!(
            refused(&|m| {
                m.set_message_type(MessageType::Response);
            }),
            Refused::Drop
        );
        assert_eq!(read(&[0; 11]).unwrap_err(), Refused::Drop);
        let mut claims = question("example.com.", RecordType::A).to_vec().unwrap();
        claims[6..12].fill(0xff);
        assert_eq!(code(read(&claims).unwrap_err()), 1);
    }

    #[test]
    fn long_replies_are_cut_over_udp_alone() {
        let query = read(&question("example.com.", RecordType::A).to_vec().unwrap()).unwrap();
        let record = |i: u8| {
            Record::from_rdata(
                query.name.clone(),
                60,
                RData::A(rdata::A::new(192, 0, 2, i)),
            )
        };
        let answer = Answer::records((0..200).map(record).collect());
        let udp = reply(&query, answer.clone(), Transport::Udp).unwrap();
        assert!(udp.len() <= 512);
        let udp = Message::from_vec(&udp).unwrap();
        assert!(udp.truncated() && udp.answers().is_empty() && udp.id() == 7);
        let tcp = Message::from_vec(&reply(&query, answer, Transport::Tcp).unwrap()).unwrap();
        assert!(!tcp.truncated() && tcp.answers().len() == 200);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = read(&bytes);
        }

        /// Random bytes rarely get past the header; these mostly do.
        #[test]
        fn any_damage_is_read(
            at in proptest::collection::vec((12usize..60, any::<u8>()), 0..6),
            cut in 12usize..60,
            kind in any::<u16>(),
        ) {
            let mut message = question("some.name.example.com.", kind.into());
            message.set_edns(Edns::new());
            let mut bytes = message.to_vec().unwrap();
            for (at, byte) in at {
                if let Some(b) = bytes.get_mut(at) {
                    *b = byte;
                }
            }
            bytes.truncate(cut.max(bytes.len() / 2));
            if let Ok(query) = read(&bytes) {
                let reply = reply(&query, Answer::empty(), Transport::Udp);
                prop_assert!(reply.is_none_or(|r| r.len() <= 512 + 720));
            }
        }
    }
}
