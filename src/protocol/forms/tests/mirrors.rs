//! The table of mirrors, every row.

use super::*;

/// The request's verb and line, the primary's answer; what is sent: verb, with data or not,
/// the number to be answered, the line.
type Row = (
    Verb,
    &'static str,
    Status,
    Verb,
    bool,
    Option<u64>,
    &'static str,
);

fn mirrored(verb: Verb, traits: Traits, line: &str, status: Status) -> (Mirror, String) {
    written(|out| mirror(verb, traits, &wire(line), status, out))
}

#[test]
fn mirrors_of_text() {
    let table: &[(Verb, &str, Status, Verb, bool, &str)] = &[
        (Set, "set a 1 2 3|", Done, Set, true, "set a 1 2 3|"),
        (Add, "add a 1 2 3|", Done, Set, true, "set a 1 2 3|"),
        (Replace, "replace a 1 2 3|", Done, Set, true, "set a 1 2 3|"),
        (Cas, "cas a 1 2 3 99|", Done, Set, true, "set a 1 2 3|"),
        (
            Append,
            "append a 0 0 3|",
            Done,
            Append,
            true,
            "append a 0 0 3|",
        ),
        (
            Prepend,
            "prepend a 0 0 3|",
            Done,
            Prepend,
            true,
            "prepend a 0 0 3|",
        ),
        (Touch, "touch a 10|", Done, Touch, false, "touch a 10|"),
        (Gat, "gat 10 a|", Done, Touch, false, "touch a 10|"),
        (Gats, "gats 0 a|", Done, Touch, false, "touch a 0|"),
        (Delete, "delete a|", Done, Delete, false, "delete a|"),
        (Delete, "delete a|", Absent, Delete, false, "delete a|"),
    ];
    for &(verb, line, status, to, with_data, want) in table {
        let sent = Mirror::Send {
            verb: to,
            with_data,
            number: None,
        };
        assert_eq!(
            mirrored(verb, Traits::WRITES, line, status),
            (sent, want.into())
        );
    }
    for (verb, line) in [(Incr, "incr a 5|"), (Decr, "decr a 5|")] {
        let sent = Mirror::Send {
            verb,
            with_data: false,
            number: Some(7),
        };
        assert_eq!(
            mirrored(verb, Traits::WRITES, line, Number(7)),
            (sent, line.into())
        );
    }
}

#[test]
fn mirrors_of_meta() {
    #[rustfmt::skip] // A row a line.
    let table: &[Row] = &[
        (MetaSet, "ms a 3|", Done, MetaSet, true, None, "ms a 3|"),
        (MetaSet, "ms a 3 c F5 T10 MS C9 E8|", Done, MetaSet, true, None, "ms a 3 F5 T10 E8|"),
        (MetaSet, "ms Zm9v 3 T1 b ME|", Done, MetaSet, true, None, "ms Zm9v 3 T1 b|"),
        (MetaSet, "ms a 3 MR C1|", Done, MetaSet, true, None, "ms a 3|"),
        (MetaSet, "ms C1 3 MA c C1 T5|", Done, MetaSet, true, None, "ms C1 3 MA T5|"),
        (MetaSet, "ms a 3 MP b|", Done, MetaSet, true, None, "ms a 3 MP b|"),
        (MetaSet, "ms a 3 MA N5|", Done, Delete, false, None, "delete a|"),
        (MetaSet, "ms Zm9v 3 MP N5 b|", Done, MetaDelete, false, None, "md Zm9v b|"),
        (MetaSet, "ms a 3 I C4|", Done, Delete, false, None, "delete a|"),
        (MetaSet, "ms a 3 MA I|", Done, Delete, false, None, "delete a|"),
        (MetaGet, "mg a v t T60 N5|", Done, Touch, false, None, "touch a 60|"),
        (MetaGet, "mg Zm9v b T-1 v|", Done, MetaGet, false, None, "mg Zm9v b T-1|"),
        (MetaDelete, "md a|", Done, MetaDelete, false, None, "md a|"),
        (MetaDelete, "md a C5 x T3|", Done, MetaDelete, false, None, "md a x T3|"),
        (MetaDelete, "md Zm9v b|", Absent, MetaDelete, false, None, "md Zm9v b|"),
        (MetaDelete, "md a I T3|", Done, Delete, false, None, "delete a|"),
        (MetaDelete, "md Zm9v I b|", Absent, MetaDelete, false, None, "md Zm9v b|"),
        (MetaArithmetic, "ma a N5 J7 c D2 t MD C5 T9 v|", Number(7), MetaArithmetic, false, Some(7), "ma a N5 J7 D2 MD T9 v|"),
        (MetaArithmetic, "ma a|", Done, Delete, false, None, "delete a|"),
    ];
    for &(verb, line, status, to, with_data, number, want) in table {
        let sent = Mirror::Send {
            verb: to,
            with_data,
            number,
        };
        assert_eq!(
            mirrored(verb, Traits::WRITES, line, status),
            (sent, want.into())
        );
    }
}

#[test]
fn a_failed_set_is_a_delete() {
    let sets = Traits::WRITES.with(Traits::SETS);
    for status in [ServerError, ClientError] {
        for (verb, line, to, want) in [
            (Set, "set a 0 0 9|", Delete, "delete a|"),
            (MetaSet, "ms a 9 T5|", Delete, "delete a|"),
            (MetaSet, "ms Zm9v 9 b|", MetaDelete, "md Zm9v b|"),
        ] {
            let sent = Mirror::Send {
                verb: to,
                with_data: false,
                number: None,
            };
            assert_eq!(mirrored(verb, sets, line, status), (sent, want.into()));
            let nothing = (Mirror::Nothing, String::new());
            assert_eq!(mirrored(verb, Traits::WRITES, line, status), nothing);
            assert_eq!(mirrored(verb, sets, line, Unknown), nothing);
        }
    }
}

#[test]
fn what_changed_nothing_is_not_mirrored() {
    let lines = [
        (Set, "set a 0 0 1|"),
        (Add, "add a 0 0 1|"),
        (Cas, "cas a 0 0 1 5|"),
        (Append, "append a 0 0 1|"),
        (Incr, "incr a 1|"),
        (Touch, "touch a 1|"),
        (Gat, "gat 1 a|"),
        (MetaGet, "mg a T1|"),
        (MetaSet, "ms a 1 I|"),
        (MetaSet, "ms a 1 MA N1|"),
        (MetaArithmetic, "ma a v|"),
        (MetaDebug, "me a|"),
    ];
    for (verb, line) in lines {
        for status in [Absent, NotStored, Exists, Unknown, ClientError, ServerError] {
            let nothing = (Mirror::Nothing, String::new());
            assert_eq!(mirrored(verb, Traits::WRITES, line, status), nothing);
        }
    }
    for (verb, line) in [
        (Get, "get a|"),
        (Gets, "gets a|"),
        (MetaGet, "mg T5 v N5 R5|"),
        (MetaDebug, "me a|"),
        (FlushAll, "flush_all|"),
    ] {
        assert_eq!(
            mirrored(verb, Traits::default(), line, Done).0,
            Mirror::Nothing
        );
    }
    for status in [Exists, Unknown, ClientError, ServerError] {
        assert_eq!(
            mirrored(MetaDelete, Traits::WRITES, "md a I|", status).0,
            Mirror::Nothing
        );
        assert_eq!(
            mirrored(Delete, Traits::WRITES, "delete a|", status).0,
            Mirror::Nothing
        );
    }
}

#[test]
fn answers_to_mirrors() {
    for (status, expected, ok) in [
        (Done, None, true),
        (Absent, None, true),
        (NotStored, None, true),
        (Absent, Some(5), true),
        (Number(5), Some(5), true),
        (Number(6), Some(5), false),
        (Number(5), None, false),
        (Exists, None, false),
        (Unknown, None, false),
        (ClientError, None, false),
        (ServerError, Some(5), false),
    ] {
        assert_eq!(mirror_ok(status, expected), ok, "{status:?} {expected:?}");
    }
}
