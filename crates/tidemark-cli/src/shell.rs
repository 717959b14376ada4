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
    let words = args.map(|arg| word(&arg.to_string_lossy()));
    std::iter::once("tidemark".to_owned()).chain(words).collect::<Vec<String>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

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
