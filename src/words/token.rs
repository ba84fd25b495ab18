//! Secrets by which peers know each other again.

use std::fmt;
use std::hint::black_box;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A secret of 128 random bits. It is written as 32 hexadecimal digits, and only where somebody asks
/// for [`Token::digits`]: `Debug` keeps it to itself. A comparison takes as long for a wrong one as for the
/// right one.
#[derive(Clone, Copy, Eq)]
pub struct Token([u8; 16]);

/// What is written is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token is 32 hexadecimal digits")]
pub struct TokenError;

impl Token {
    /// The token of these random numbers.
    pub fn of(random: [u64; 2]) -> Token {
        let [first, second] = random;
        Token(((u128::from(first) << 64) | u128::from(second)).to_be_bytes())
    }

    /// As it is written.
    pub fn digits(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Token) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        let differing = pairs.fold(0, |bits, (ours, theirs)| black_box(bits | (ours ^ theirs)));
        differing == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Token, TokenError> {
        let is_token = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = is_token.then(|| u128::from_str_radix(text, 16).ok());
        let number = number.flatten().ok_or(TokenError)?;
        Ok(Token(number.to_be_bytes()))
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.digits())
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Token, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_is_written_and_nothing_else() {
        let token = Token::of([1, u64::MAX]);
        assert_eq!(token.digits(), "0000000000000001ffffffffffffffff");
        assert_eq!(token.digits().parse(), Ok(token));
        assert!(token != Token::of([1, u64::MAX - 1]) && token != Token::of([0, u64::MAX]));
        for wrong in [
            "",
            "3",
            "+000000000000001ffffffffffffffff",
            "0000000000000001fffffffffffffffff",
        ] {
            assert_eq!(wrong.parse::<Token>(), Err(TokenError), "{wrong:?}");
        }
        assert!(!format!("{token:?}").contains('1'));
        let json = serde_json::to_string(&token).unwrap();
        assert_eq!(serde_json::from_str::<Token>(&json).unwrap(), token);
    }
}
