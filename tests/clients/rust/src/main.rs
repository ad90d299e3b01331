//! The Rust client `memcache`: `clients ascii|binary|meta HOST PORT`. Prints a line a feature.

use memcache::exp::{Meta, MetaClient, MutationStatus, Ttl};
use memcache::{Client, CommandError, MemcacheError};
use std::collections::HashMap;
use std::fmt::Debug;

/// A check's outcome: the client itself may lack the feature.
enum Fault {
    Lacks,
    Fails(String),
}

impl<E: Debug> From<E> for Fault {
    fn from(e: E) -> Fault {
        Fault::Fails(format!("{e:?}"))
    }
}

type Outcome = Result<(), Fault>;

fn equal<T: PartialEq + Debug>(got: T, want: T) -> Outcome {
    if got == want {
        return Ok(());
    }
    let text = format!("{got:?} instead of {want:?}");
    Err(Fault::Fails(text.chars().take(200).collect()))
}

fn tell(feature: &str, outcome: Outcome) {
    match outcome {
        Ok(()) => println!("works {feature}"),
        Err(Fault::Lacks) => println!("lacks {feature}"),
        Err(Fault::Fails(why)) => println!("fails {feature}: {}", why.replace('\n', " ")),
    }
}

/// A store that was refused by a condition.
fn refused(result: Result<(), MemcacheError>) -> Outcome {
    match result {
        Err(MemcacheError::CommandError(
            CommandError::KeyExists | CommandError::KeyNotFound,
        )) => Ok(()),
        other => Err(Fault::Fails(format!("{other:?} instead of a refusal"))),
    }
}

/// The classic client, text or binary.
struct Classic<'a> {
    c: &'a Client,
    prefix: String,
}

impl Classic<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn get(&self, key: &str) -> Result<Option<String>, MemcacheError> {
        self.c.get(key)
    }

    fn set_get(&self) -> Outcome {
        let key = self.key("a");
        self.c.set(&key, "one", 0)?;
        equal(self.get(&key)?, Some("one".into()))?;
        self.c.set(&key, "", 0)?;
        equal(self.get(&key)?, Some(String::new()))?;
        equal(self.get(&self.key("none"))?, None)
    }

    fn several(&self) -> Outcome {
        let keys: Vec<String> = (0..200).map(|i| self.key(&format!("m{i}"))).collect();
        for key in &keys {
            self.c.set(key, key.as_str(), 0)?;
        }
        let asked: Vec<&str> = keys.iter().map(String::as_str).chain(["none"]).collect();
        let got: HashMap<String, String> = self.c.gets(&asked)?;
        equal(got, keys.iter().map(|k| (k.clone(), k.clone())).collect())
    }

    fn cas(&self) -> Outcome {
        let key = self.key("cas");
        self.c.set(&key, "one", 0)?;
        let got: HashMap<String, (Vec<u8>, u32, Option<u64>)> = self.c.gets(&[&key])?;
        let token = got.get(&key).and_then(|item| item.2);
        let token = token.ok_or_else(|| Fault::Fails("no token".into()))?;
        equal(self.c.cas(&key, "two", 0, token)?, true)?;
        equal(self.c.cas(&key, "three", 0, token)?, false)?;
        equal(self.get(&key)?, Some("two".into()))
    }

    fn count(&self) -> Outcome {
        let key = self.key("n");
        self.c.set(&key, "10", 0)?;
        equal(self.c.increment(&key, 5)?, 15)?;
        equal(self.c.decrement(&key, 4)?, 11)
    }

    fn touch(&self) -> Outcome {
        let key = self.key("t");
        self.c.set(&key, "one", 0)?;
        equal(self.c.touch(&key, 100)?, true)?;
        equal(self.c.touch(&self.key("none"), 100)?, false)
    }

    fn delete(&self) -> Outcome {
        let key = self.key("d");
        self.c.set(&key, "one", 0)?;
        equal(self.c.delete(&key)?, true)?;
        equal(self.c.delete(&key)?, false)
    }

    fn add_replace(&self) -> Outcome {
        let key = self.key("add");
        self.c.delete(&key)?;
        refused(self.c.replace(&key, "zero", 0))?;
        self.c.add(&key, "one", 0)?;
        refused(self.c.add(&key, "two", 0))?;
        self.c.replace(&key, "three", 0)?;
        equal(self.get(&key)?, Some("three".into()))
    }

    fn append_prepend(&self) -> Outcome {
        let key = self.key("ap");
        self.c.set(&key, "b", 0)?;
        self.c.append(&key, "c")?;
        self.c.prepend(&key, "a")?;
        equal(self.get(&key)?, Some("abc".into()))
    }

    fn large(&self) -> Outcome {
        let key = self.key("large");
        for len in [100_000, 1_000_000, 5] {
            let text = "x".repeat(len);
            self.c.set(&key, text.as_str(), 0)?;
            equal(self.get(&key)?, Some(text))?;
        }
        Ok(())
    }

    fn unicode(&self) -> Outcome {
        for name in ["żółw", "ключ", "鍵", "🔑"] {
            let key = self.key(name);
            self.c.set(&key, name, 0)?;
            equal(self.get(&key)?, Some(name.into()))?;
        }
        Ok(())
    }

    fn stats(&self) -> Outcome {
        let all = self.c.stats()?;
        equal(all.first().is_some_and(|(_, s)| s.len() > 10), true)
    }

    fn version(&self) -> Outcome {
        let all = self.c.version()?;
        equal(all.first().is_some_and(|(_, v)| v.starts_with("1.6.18")), true)
    }

    fn flush(&self) -> Outcome {
        let key = self.key("f");
        self.c.set(&key, "one", 0)?;
        self.c.flush()?;
        equal(self.get(&key)?, None)
    }
}

fn classic(protocol: &str, host: &str, port: &str) -> Result<(), MemcacheError> {
    let query = if protocol == "ascii" { "&protocol=ascii" } else { "" };
    let url = format!("memcache://{host}:{port}?timeout=10{query}");
    let c = Classic {
        c: &Client::connect(url)?,
        prefix: format!("rust-{protocol}-"),
    };
    tell("set, get", c.set_get());
    tell("get of several keys", c.several());
    tell("cas", c.cas());
    tell("incr, decr", c.count());
    tell("touch", c.touch());
    tell("gat", Err(Fault::Lacks));
    tell("delete", c.delete());
    tell("add, replace", c.add_replace());
    tell("append, prepend", c.append_prepend());
    tell("values of 100 KB and 1 MB", c.large());
    tell("unicode keys", c.unicode());
    tell("noreply", Err(Fault::Lacks));
    tell("stats", c.stats());
    tell("version", c.version());
    tell("flush_all", c.flush());
    Ok(())
}

fn meta_store(c: &MetaClient) -> Outcome {
    equal(c.set("meta-a", "one").send()?.applied(), true)?;
    equal(c.get("meta-a").send()?.value.as_deref(), Some(&b"one"[..]))?;
    equal(c.get("meta-none").send()?.value, None)?;
    equal(c.delete("meta-a").send()?.applied(), true)?;
    equal(c.delete("meta-a").send()?.status, MutationStatus::NotFound)
}

fn meta_modes(c: &MetaClient) -> Outcome {
    let key = "meta-modes";
    equal(c.set(key, "x").replace().send()?.status, MutationStatus::NotFound)?;
    equal(c.set(key, "b").add().send()?.applied(), true)?;
    equal(c.set(key, "z").add().send()?.status, MutationStatus::AlreadyExists)?;
    equal(c.set(key, "c").append().send()?.applied(), true)?;
    equal(c.set(key, "a").prepend().send()?.applied(), true)?;
    equal(c.get(key).send()?.value.as_deref(), Some(&b"abc"[..]))
}

fn meta_cas(c: &MetaClient) -> Outcome {
    let key = "meta-cas";
    let token = c.set(key, "one").return_cas().send()?.cas;
    let token = token.ok_or_else(|| Fault::Fails("no token".into()))?;
    equal(c.set(key, "two").compare_cas(token).send()?.applied(), true)?;
    let again = c.set(key, "three").compare_cas(token).send()?;
    equal(again.status, MutationStatus::CasMismatch)
}

fn meta_count(c: &MetaClient) -> Outcome {
    let key = "meta-n";
    equal(c.increment(key).send()?.status, MutationStatus::NotFound)?;
    equal(c.increment(key).initial(40, 60).send()?.value, Some(40))?;
    equal(c.increment(key).delta(2).send()?.value, Some(42))?;
    equal(c.decrement(key).delta(100).send()?.value, Some(0))
}

fn meta_item(c: &MetaClient) -> Outcome {
    let key = "meta-item";
    c.set(key, "bar").ttl(Ttl::secs(100)).client_flags(7).send()?;
    let got = c.get(key).meta(Meta::NONE.cas().ttl().size()).send()?;
    equal(got.item.size, Some(3))?;
    equal(got.client_flags, Some(7))?;
    equal(got.item.ttl.is_some_and(|t| (90..=100).contains(&t)), true)
}

fn meta_binary_key(c: &MetaClient) -> Outcome {
    let key = "meta key with spaces\x01";
    equal(c.set(key, "bar").send()?.applied(), true)?;
    equal(c.get(key).send()?.value.as_deref(), Some(&b"bar"[..]))?;
    equal(c.delete(key).send()?.applied(), true)
}

fn meta_lease(c: &MetaClient) -> Outcome {
    let key = "meta-lease";
    let winner = c.get(key).lease_ttl(30).send()?;
    equal(winner.won_lease(), true)?;
    equal(c.get(key).lease_ttl(30).send()?.won_lease(), false)?;
    let token = winner.item.cas.ok_or_else(|| Fault::Fails("no token".into()))?;
    equal(c.set(key, "fresh").compare_cas(token).send()?.applied(), true)?;
    equal(c.get(key).send()?.value.as_deref(), Some(&b"fresh"[..]))
}

fn meta_many(c: &MetaClient) -> Outcome {
    let keys: Vec<String> = (0..200).map(|i| format!("meta-m{i}")).collect();
    let sets = keys.iter().map(|k| memcache::exp::Set::new(k.as_str(), k.as_str()));
    for stored in c.run_many(sets)? {
        equal(stored?.applied(), true)?;
    }
    let gets = keys.iter().map(|k| memcache::exp::Get::new(k.as_str()));
    for (key, got) in keys.iter().zip(c.run_many(gets)?) {
        equal(got?.value.as_deref(), Some(key.as_bytes()))?;
    }
    Ok(())
}

fn meta_large(c: &MetaClient) -> Outcome {
    for len in [100_000, 1_000_000] {
        let text = "x".repeat(len);
        equal(c.set("meta-large", text.as_str()).send()?.applied(), true)?;
        equal(c.get("meta-large").send()?.value.as_deref(), Some(text.as_bytes()))?;
    }
    Ok(())
}

fn meta_debug(c: &MetaClient) -> Outcome {
    c.set("meta-debug", "x").send()?;
    equal(c.debug("meta-debug")?.is_some_and(|f| f.contains_key("exp")), true)?;
    equal(c.debug("meta-none")?.is_none(), true)
}

fn meta(host: &str, port: &str) -> Outcome {
    let c = MetaClient::connect(format!("{host}:{port}").as_str())?;
    // The features of the second run must find what those of the first found.
    for key in ["meta-modes", "meta-n", "meta-lease"] {
        c.delete(key).send()?;
    }
    tell("set, get, delete", meta_store(&c));
    tell("many at once (q, k, O, mn)", meta_many(&c));
    tell("add, replace, append, prepend", meta_modes(&c));
    tell("cas", meta_cas(&c));
    tell("incr, decr, initial value", meta_count(&c));
    tell("ttl, size, flags", meta_item(&c));
    tell("base64 keys", meta_binary_key(&c));
    tell("lease", meta_lease(&c));
    tell("values of 100 KB and 1 MB", meta_large(&c));
    tell("me", meta_debug(&c));
    Ok(())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [protocol, host, port] = &args[..] else {
        panic!("clients ascii|binary|meta HOST PORT");
    };
    let told = match protocol.as_str() {
        "meta" => meta(host, port),
        _ => classic(protocol, host, port).map_err(Fault::from),
    };
    if told.is_err() {
        tell("to connect", told);
        std::process::exit(1);
    }
}
