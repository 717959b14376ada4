//! Passwords that are not in the URL: `PGPASSWORD` and the password file.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use postgres::Config;
use postgres::config::Host;

use crate::error::{Error, Kind, Result};

/// The password for what `config` names; `None` if there is none.
///
/// # Errors
/// [`Kind::Blocked`] for a password file that others can read, which `psql` ignores too.
pub(crate) fn password(config: &Config) -> Result<Option<String>> {
    if let Ok(password) = std::env::var("PGPASSWORD")
        && !password.is_empty()
    {
        return Ok(Some(password));
    }
    let named = std::env::var_os("PGPASSFILE").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pgpass"));
    let Some(path) = named.or(home) else { return Ok(None) };
    // Read or not, the server decides whether a password is needed.
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
    let wanted = Wanted::of(config);
    let Some(found) = text.lines().find_map(|line| wanted.password_of(line)) else {
        return Ok(None);
    };
    let mode = std::fs::metadata(&path).map_or(0, |metadata| metadata.mode());
    if mode & 0o077 != 0 {
        let message = format!(
            "the password file `{}` can be read by others; run `chmod 600` on it",
            path.display()
        );
        return Err(Error::new(Kind::Blocked, message));
    }
    Ok(Some(found))
}

struct Wanted {
    host: String,
    port: String,
    database: String,
    user: String,
}

impl Wanted {
    fn of(config: &Config) -> Wanted {
        let host = match config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            // The manual: a socket is looked up as the machine itself.
            Some(Host::Unix(_)) | None => "localhost".to_owned(),
        };
        let user = config
            .get_user()
            .map_or_else(|| std::env::var("USER").unwrap_or_default(), str::to_owned);
        let database = config.get_dbname().map_or_else(|| user.clone(), str::to_owned);
        let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
        Wanted { host, port, database, user }
    }

    /// The password of a line `host:port:database:user:password` that fits; `\` keeps the
    /// next character, `*` fits anything.
    fn password_of(&self, line: &str) -> Option<String> {
        if line.starts_with('#') {
            return None;
        }
        let mut fields = vec![String::new()];
        let mut chars = line.chars();
        while let Some(char) = chars.next() {
            if char == ':' && fields.len() < 5 {
                fields.push(String::new());
                continue;
            }
            let kept = if char == '\\' { chars.next() } else { Some(char) };
            fields.last_mut().expect("there is at least one field").extend(kept);
        }
        let wanted = [&self.host, &self.port, &self.database, &self.user];
        let fits = fields.len() == 5
            && fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
        fits.then(|| fields.swap_remove(4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_fits_gives_its_password() {
        let config: Config = "postgres://me@db.example:5433/shop".parse().unwrap();
        let wanted = Wanted::of(&config);
        let password = |line| wanted.password_of(line);
        assert_eq!(password("db.example:5433:shop:me:a\\:b:c"), Some("a:b:c".to_owned()));
        assert_eq!(password("*:*:*:me:x"), Some("x".to_owned()));
        assert_eq!(password("*:*:*:you:x"), None);
        assert_eq!(password("# *:*:*:me:x"), None);
        assert_eq!(password("db.example:5433:shop:me"), None);
    }
}
