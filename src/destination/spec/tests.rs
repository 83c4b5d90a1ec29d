//! Tests of names and targets as one, through [`Spec::parse`].

use super::name::check;
use super::*;
use proptest::prelude::*;

fn name(text: &str) -> String {
    Spec::parse(text).unwrap().name
}

fn refused(text: &str) -> String {
    Spec::parse(text).unwrap_err().0
}

#[test]
fn the_dest_flag_for_a_name_parses_to_that_name() {
    let absolute = "/var/out.jsonl";
    for typed in
        ["file-1", "./out.jsonl", absolute, "-", "null:", "stdout", "https://example.com/hook", "a=-", "stdout=x"]
    {
        let name = Spec::parse(typed).unwrap().name;
        let flag = dest_flag(&name);
        let value = flag.strip_prefix("--dest").and_then(|rest| rest.strip_prefix([' ', '=']));
        assert_eq!(Spec::parse(value.unwrap()).unwrap().name, name, "{typed}");
        assert_eq!(flag.starts_with("--dest="), name == "stdout" || typed == absolute, "{flag}: it would be a flag");
    }
}

#[test]
fn derived_names_never_change() {
    for (text, expected) in [
        ("file-1", "file-1"),
        ("./file-1", "file-1"),
        ("file:file-1", "file-1"),
        ("log.jsonl", "log.jsonl"),
        ("-", "stdout"),
        ("null:", "null"),
        ("null", "null-147e9acc"),
        ("./stdout", "stdout-1b696655"),
        ("file:out/log.jsonl", "out-log.jsonl-4a85edc1"),
        ("http://localhost:9000", "localhost-9000-76c7015f"),
        ("http://localhost:9000/", "localhost-9000--2393c05d"),
        ("https://example.com", "example.com-017dd4d4"),
        ("http://h/ü", "h---82393199"),
        ("out/x=y", "out-x-y-2556d2a8"),
        ("größe", "gr--e-19074357"),
    ] {
        assert_eq!(name(text), expected, "{text}");
    }
}

#[test]
fn user_password_query_and_fragment_do_not_change_a_name_or_a_digest() {
    let plain = Spec::parse("https://example.com:8443/hook/a").unwrap();
    for (text, earlier) in [
        ("https://u:p@example.com:8443/hook/a?b=c#d", Some("example.com-8443-hook-a-7ffafdd4")),
        ("https://u:q@example.com:8443/hook/a?b=c#d", Some("example.com-8443-hook-a-075d9d59")),
        ("https://example.com:8443/hook/a?token=one", Some("example.com-8443-hook-a-4e71cef3")),
        ("https://example.com:8443/hook/a?token=two/@x", Some("example.com-8443-hook-a-2260a636")),
        ("https://u@example.com:8443/hook/a", Some("example.com-8443-hook-a-8117dcd4")),
        ("https://example.com:8443/hook/a#", Some("example.com-8443-hook-a-9b63b62e")),
        ("https://example.com:8443/hook/a", None),
    ] {
        let spec = Spec::parse(text).unwrap();
        assert_eq!((&spec.name, spec.digest()), (&plain.name, plain.digest()), "{text}");
        assert_eq!(spec.earlier_name.as_deref(), earlier, "{text}");
    }
    for other in ["https://example.com:8443/hook/b", "https://example.com:8443/hook", "http://example.com:8443/hook/a"]
    {
        let other = Spec::parse(other).unwrap();
        assert!(other.name != plain.name && other.digest() != plain.digest(), "{other}");
    }
    assert_eq!(Spec::parse("crm=https://u:p@h/?a=b").unwrap().earlier_name, None, "a typed name has no earlier name");
    let named = Spec::parse("https://u:p@h/?a=b").unwrap().with_name("crm").unwrap();
    assert_eq!(named.earlier_name, None);
    assert_eq!(Spec::parse("./what?x=y").unwrap().earlier_name, None, "a path was taken for a URL");
}

#[test]
fn characters_that_a_request_line_cannot_contain_are_encoded_or_refused() {
    let uri = |text: &str| match Spec::parse(text).unwrap().target {
        Target::Http(http) => (http.uri.to_string(), http.userinfo),
        target => panic!("{target:?}"),
    };
    assert_eq!(uri("http://h/ü").0, "http://h/%C3%BC");
    assert_eq!(uri("http://h/a%20b?größe=日本&x={1}").0, "http://h/a%20b?gr%C3%B6%C3%9Fe=%E6%97%A5%E6%9C%AC&x=%7B1%7D");
    assert_eq!(uri("http://h?ü").0, "http://h/?%C3%BC");
    assert_eq!(uri("http://jürgen:paß@h/").1.as_deref(), Some("j%C3%BCrgen:pa%C3%9F"));
    assert_eq!(uri("http://h/a:b;c=d,e/@f?g=h/i?j&k[]=1'").0, "http://h/a:b;c=d,e/@f?g=h/i?j&k[]=1'");
    assert!(refused("http://bücher.example/").contains("xn--"));
    for text in ["http://h/a b", "http://h/a\nb", "http://h/a\u{a0}b", "http://h/\u{7f}", "http://h/?\u{9b}"] {
        assert!(refused(text).contains("%20"), "{text:?}: {}", refused(text));
    }
}

#[test]
fn text_before_the_first_equals_sign_is_the_name_if_it_can_be_one() {
    let named = |text| {
        let spec = Spec::parse(text).unwrap();
        (spec.name, spec.as_typed)
    };
    assert_eq!(named("a=file-1"), ("a".into(), "file-1".into()));
    assert_eq!(named("a.b_c-d=b=c"), ("a.b_c-d".into(), "b=c".into()));
    assert_eq!(named("crm=https://h/?a=b"), ("crm".into(), "https://h/?a=b".into()));
    assert_eq!(named("https://h/?a=b").1, "https://h/?a=b");
    assert_eq!(named("./a=b").1, "./a=b");
    assert_eq!(named("out=-"), ("out".into(), "-".into()));
}

#[test]
fn names_that_side_topics_use_are_refused() {
    for text in ["a.dead=x", "x.dead", "file:x.rewind", "a.state=null:", "a.replay.b=x", "x.replay.y"] {
        assert!(refused(text).contains("NAME=DEST"), "{text}: {}", refused(text));
    }
    assert!(refused(&format!("{}=x", "n".repeat(101))).contains("101"));
    assert!(Spec::parse(&format!("{}=x", "n".repeat(100))).is_ok());
    assert!(Spec::parse("x").unwrap().with_name("with space").is_err());
}

#[test]
fn a_name_without_a_letter_or_digit_is_refused() {
    for text in ["..=x", ".=x", "...=x", "-=x", "_=null:", ".-_=http://h/"] {
        assert!(refused(text).contains("needs a letter or a digit"), "{text}: {}", refused(text));
    }
    assert_eq!(name(".a=x"), ".a");
    assert_eq!(name("..a"), "..a");
    assert_eq!(name("___"), "___-b39fdf0a", "a derived name gets digits");
}

#[test]
fn the_error_for_text_that_is_not_a_destination_says_what_to_write() {
    for text in ["", "a=", "file:"] {
        assert!(refused(text).contains("missing"), "{text}");
    }
    assert!(refused("ftp://host/x").contains("unknown scheme \"ftp\""));
    assert!(refused("ftp://host/x").contains("https://"));
    assert!(refused("kafka:x").contains("./"));
    assert!(refused("localhost:9000/hook").ends_with("write http://localhost:9000/hook"));
    assert!(refused("a=h.example.com:90").ends_with("write https://h.example.com:90"));
    assert!(refused("a b=file-1").ends_with("type a path with = as ./a b=file-1"));
    for text in ["http://", "http:///x", "http:x", "https://h:99999/", "http://h:/", "http://h/a b", "null:x"] {
        assert!(Spec::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_path_can_be_written_in_several_ways() {
    for (text, expected) in
        [("file:///var/log/x", "/var/log/x"), ("/var/log/x", "/var/log/x"), ("./a:b", "./a:b"), ("FILE:a:b", "a:b")]
    {
        assert_eq!(Spec::parse(text).unwrap().target, Target::File(expected.into()), "{text}");
    }
}

#[test]
fn passwords_and_queries_are_never_shown() {
    let spec = Spec::parse("crm=https://user:secret@example.com/a@b?c=d").unwrap();
    let shown = format!("{spec} {spec:?} {:?}", spec.target);
    assert!(!shown.contains("secret") && shown.contains("example.com/a@b?…"), "{shown}");
    assert!(!shown.contains("c=d"), "{shown}");
    let Target::Http(http) = &spec.target else { panic!("not an http target") };
    assert_eq!(
        (http.uri.to_string().as_str(), http.userinfo.as_deref()),
        ("https://example.com/a@b?c=d", Some("user:secret"))
    );
    assert_eq!(Spec::parse("./what?").unwrap().to_string(), "./what?");
    for text in [
        "http//u:secret@h/x",
        "HTTPS//u:secret@h/x",
        "hook=https//u:secret@h/x",
        "my hook=https//h/secret/x",
        "h/hook?token=secret",
        "h/u:secret@x/y=1",
        "http://u:secret@h/x,http://u:secret@h/y",
        "http://u:secret@h/x;https://h/y?token=secret",
        "\"http://u:secret@h/x\"",
    ] {
        assert!(!refused(text).contains("secret"), "{text}: {}", refused(text));
    }
    for path in ["./h/hook?a=b", "/h?a=b", "what?", "http/log", "https.log", "a@b", "../u:x@y"] {
        assert!(matches!(Spec::parse(path).unwrap().target, Target::File(_)), "{path}");
    }
    assert!(refused("=x").contains("name"));
    for text in ["c m=https://u:secret@h/", "größe=http://h/?k=secret", "file:crm=https://u:secret@h"] {
        assert!(refused(text).contains("NAME= takes") && !refused(text).contains("secret"), "{}", refused(text));
    }
    assert!(!refused("ftp://h/?k=secret").contains("secret") && !refused("http://h:x/?k=secret").contains("secret"));
    for text in ["https://user:sec/ret@host/x", "ftp://user:secret@host", "https://u:secret@h:x/"] {
        assert!(!refused(text).contains("ret@"), "{}", refused(text));
    }
}

proptest! {
    #[test]
    fn any_text_gives_a_valid_name_or_an_error(text in "\\PC{0,150}") {
        if let Ok(spec) = Spec::parse(&text) {
            prop_assert!(check(&spec.name).is_ok());
        }
    }

    #[test]
    fn any_absolute_path_gives_a_valid_name(path in "/[a-zäß:=/ ]{0,200}") {
        prop_assume!(!path.contains("://"));
        prop_assert!(check(&name(&path)).is_ok());
    }
}
