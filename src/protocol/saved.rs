//! Requests that a client is in the middle of, and how its answers are written, for another program.

use super::{BinaryFormat, Dialect, Format, MetaFormat, Request, Traits, Verb};
use crate::saved::{Damaged, Loaded, Loader, Saved, Saver, saved_fields, saved_names};

saved_names!(Verb {
    Get = 0,
    Gets = 1,
    Gat = 2,
    Gats = 3,
    Set = 4,
    Add = 5,
    Replace = 6,
    Append = 7,
    Prepend = 8,
    Cas = 9,
    Incr = 10,
    Decr = 11,
    Delete = 12,
    Touch = 13,
    MetaGet = 14,
    MetaSet = 15,
    MetaDelete = 16,
    MetaArithmetic = 17,
    MetaDebug = 18,
    FlushAll = 19,
    Version = 20,
    Stats = 21,
});

saved_names!(Dialect {
    Text = 0,
    Binary = 1,
});

saved_fields!(Request {
    verb,
    traits,
    head,
    data,
    value,
    raw,
    key,
    format,
});

impl Saved for Traits {
    fn save(&self, to: &mut Saver<'_>) {
        self.0.save(to);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Traits> {
        u8::load(from).map(Traits)
    }
}

impl Saved for Format {
    fn save(&self, to: &mut Saver<'_>) {
        match self {
            Format::Text => 0u8.save(to),
            Format::Silent => 1u8.save(to),
            Format::Meta(format) => {
                2u8.save(to);
                format.save(to);
            }
            Format::Binary(format) => {
                3u8.save(to);
                format.opcode.save(to);
                u32::from_be_bytes(format.opaque).save(to);
            }
        }
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Format> {
        Ok(match u8::load(from)? {
            0 => Format::Text,
            1 => Format::Silent,
            2 => Format::Meta(MetaFormat::load(from)?),
            3 => Format::Binary(BinaryFormat {
                opcode: u8::load(from)?,
                opaque: u32::load(from)?.to_be_bytes(),
            }),
            n => return Err(Damaged(format!("format {n}"))),
        })
    }
}

impl Saved for MetaFormat {
    fn save(&self, to: &mut Saver<'_>) {
        self.quiet.save(to);
        self.key_at.save(to);
        self.opaque_at.save(to);
        self.key_first.save(to);
        self.no_value.save(to);
        to.bytes(&self.opaque[..usize::from(self.opaque_len)]);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<MetaFormat> {
        let mut format = MetaFormat {
            quiet: bool::load(from)?,
            key_at: u8::load(from)?,
            opaque_at: u8::load(from)?,
            key_first: bool::load(from)?,
            no_value: bool::load(from)?,
            opaque_len: 0,
            opaque: [0; 32],
        };
        let opaque = from.bytes()?;
        let Some(place) = format.opaque.get_mut(..opaque.len()) else {
            return Err(Damaged(format!("an opaque of {} bytes", opaque.len())));
        };
        place.copy_from_slice(&opaque);
        format.opaque_len = opaque.len() as u8;
        Ok(format)
    }
}
