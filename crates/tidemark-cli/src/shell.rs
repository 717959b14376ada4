//! Commands as people can paste them.

/// `text` as one word of a POSIX shell.
pub(crate) fn word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+#".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) && !text.starts_with('#') {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The command that was typed.
pub(crate) fn this_command() -> String {
    let args = std::env::args_os().skip(1);
    let words = args.map(|arg| word(&without_password(&arg.to_string_lossy())));
    std::iter::once("tidemark".to_owned()).chain(words).collect::<Vec<String>>().join(" ")
}

/// What was typed, without the password of a URL in it.
pub(crate) fn without_password(typed: &str) -> String {
    let at = ["postgres://", "postgresql://"].iter().filter_map(|scheme| typed.find(scheme)).min();
    match at.map(|at| typed.split_at(at)) {
        #[cfg(feature = "postgres")]
        Some((before, url)) => {
            let url = tidemark::database::postgres::Server::without_password(url);
            format!("{before}{url}")
        }
        #[cfg(not(feature = "postgres"))]
        Some((before, _)) => format!("{before}postgres://..."),
        None => typed.to_owned(),
    }
}

/// `text` with `locator` added to every `` `tidemark operation VERB ID` `` in it that does not
/// say where the operation is recorded: the library does not know how it was opened.
pub(crate) fn located(text: &str, locator: &[String]) -> String {
    const COMMAND: &str = "`tidemark operation ";
    if locator.is_empty() {
        return text.to_owned();
    }
    let words: Vec<String> = locator.iter().map(|text| word(text)).collect();
    let mut pieces = text.split(COMMAND);
    let mut located = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        located.push_str(COMMAND);
        match piece.split_once('`') {
            Some((command, rest)) if !command.contains(" --") => {
                located.push_str(&format!("{command} {}`{rest}", words.join(" ")));
            }
            Some(_) | None => located.push_str(piece),
        }
    }
    located
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_where_their_operation_is() {
        let text = "resume with `tidemark operation resume 1`, or `tidemark operation cancel 1 \
                    --state s`, see `tidemark verify c` and `tidemark operation list`";
        let locator = ["--target", "embedded:a b"].map(str::to_owned);
        assert_eq!(
            located(text, &locator),
            "resume with `tidemark operation resume 1 --target 'embedded:a b'`, or `tidemark \
             operation cancel 1 --state s`, see `tidemark verify c` and `tidemark operation list \
             --target 'embedded:a b'`"
        );
        assert_eq!(located(text, &[]), text);
    }

    #[test]
    fn what_was_typed_is_told_without_passwords() {
        for typed in ["postgres://me:secret@h/db", "--source=postgresql://me:secret@h/db"] {
            let told = without_password(typed);
            assert!(!told.contains("secret") && told.contains("postgres"), "{told}");
        }
        assert_eq!(without_password("embedded:a:b@c"), "embedded:a:b@c");
    }

    #[test]
    fn words_survive_a_shell() {
        for (text, shown) in [
            ("embedded:/a/b-c", "embedded:/a/b-c"),
            ("", "''"),
            ("a b", "'a b'"),
            ("orders*", "'orders*'"),
            ("it's", r"'it'\''s'"),
            ("#7", "'#7'"),
            ("$HOME", "'$HOME'"),
        ] {
            assert_eq!(word(text), shown);
        }
    }
}
