"""One Python client: clients.py NAME HOST PORT

Each adapter below gives a client the same few methods; what it lacks stays away.
"""

import asyncio
import sys

from report import HUGE, LARGE, Lacks, equal, eventually, tell

name, host, port = sys.argv[1:]
where = f"{host}:{port}"


class Pymemcache:
    def __init__(self):
        from pymemcache.client.base import Client
        self.c = Client((host, int(port)), allow_unicode_keys=True, default_noreply=False,
                        encoding="utf8", timeout=10)
        self.raw = b""

    def text(self, value):
        return value.decode() if isinstance(value, bytes) else value

    def set(self, key, value, ttl=0):
        return self.c.set(key, value, expire=ttl)

    def get(self, key):
        return self.text(self.c.get(key))

    def get_multi(self, keys):
        return {k: self.text(v) for k, v in self.c.get_many(keys).items()}

    def set_multi(self, values):
        equal(self.c.set_many(values), [])

    def gets(self, key):
        value, token = self.c.gets(key)
        return self.text(value), token

    def cas(self, key, value, token):
        return bool(self.c.cas(key, value, token))

    def incr(self, key, by):
        return self.c.incr(key, by)

    def decr(self, key, by):
        return self.c.decr(key, by)

    def touch(self, key, ttl):
        return self.c.touch(key, ttl)

    def gat(self, key, ttl):
        said = self.c.raw_command(f"gat {ttl} {key}", "END\r\n")
        return self.text(said).split("\r\n")[1]

    def delete(self, key):
        return self.c.delete(key)

    def add(self, key, value):
        return self.c.add(key, value)

    def replace(self, key, value):
        return self.c.replace(key, value)

    def append(self, key, value):
        return self.c.append(key, value)

    def prepend(self, key, value):
        return self.c.prepend(key, value)

    def noreply(self, key, value):
        self.c.set(key, value, noreply=True)
        self.c.append(key, "!", noreply=True)
        self.c.delete(key + "-none", noreply=True)
        self.c.touch(key, 100, noreply=True)

    def stats(self):
        said = self.c.stats()
        # What is no number here would stay bytes.
        equal([type(said[name]) for name in (b"curr_items", b"get_hits", b"rusage_user")],
              [int, int, float])
        equal(type(said[b"hash_is_expanding"]), bool)
        return len(said)

    def stats_of(self, group):
        return self.c.stats(group)

    def version(self):
        return self.text(self.c.version())

    def flush(self):
        return self.c.flush_all()

    def meta(self, key, value):
        equal(self.c.raw_command(f"ms {key} {len(value)} T0\r\n{value}"), b"HD")
        equal(self.c.raw_command(f"mg {key} v f k Oq7"),
              f"VA {len(value)} f0 k{key} Oq7".encode())


class PythonMemcached(Pymemcache):
    def __init__(self):
        import memcache
        self.c = memcache.Client([where], socket_timeout=10, cache_cas=True)

    def set(self, key, value, ttl=0):
        return self.c.set(key, value, time=ttl)

    def get_multi(self, keys):
        return self.c.get_multi(keys)

    def set_multi(self, values):
        equal(self.c.set_multi(values), [])

    def gets(self, key):
        return self.c.gets(key), self.c.cas_ids.get(key)

    def cas(self, key, value, token):
        self.c.cas_ids[key] = token
        return bool(self.c.cas(key, value))

    def touch(self, key, ttl):
        return self.c.touch(key, ttl)

    gat = meta = version = None

    def noreply(self, key, value):
        self.c.set(key, value, noreply=True)
        self.c.append(key, "!", noreply=True)
        self.c.delete(key + "-none", noreply=True)

    def stats(self):
        return len(self.c.get_stats()[0][1])

    def stats_of(self, group):
        return self.c.get_stats(group)[0][1]

    def flush(self):
        self.c.flush_all()
        return True


class PythonBinary(Pymemcache):
    def __init__(self):
        import bmemcached
        self.c = bmemcached.Client((where,), socket_timeout=10)

    def set(self, key, value, ttl=0):
        return self.c.set(key, value, time=ttl)

    def get_multi(self, keys):
        return self.c.get_multi(keys)

    def set_multi(self, values):
        equal(self.c.set_multi(values), [])

    def gets(self, key):
        return self.c.gets(key)

    def delete(self, key):
        # It says True of an absent key too.
        return self.c.delete(key)

    touch = gat = append = prepend = noreply = meta = version = None

    def stats(self):
        return len(self.c.stats()[where])

    def stats_of(self, group):
        return self.c.stats(group)[where]

    def flush(self):
        return self.c.flush_all()


class Pylibmc(Pymemcache):
    binary = False

    def __init__(self):
        import pylibmc
        self.c = pylibmc.Client([where], binary=self.binary,
                                behaviors={"cas": True, "receive_timeout": 10_000_000})
        self.NotFound = pylibmc.NotFound

    def set(self, key, value, ttl=0):
        return self.c.set(key, value, time=ttl)

    def get_multi(self, keys):
        return self.c.get_multi(keys)

    def set_multi(self, values):
        equal(self.c.set_multi(values), [])

    def gets(self, key):
        return self.c.gets(key)

    def cas(self, key, value, token):
        return self.c.cas(key, value, token)

    def noreply(self, key, value):
        import pylibmc
        quiet = pylibmc.Client([where], binary=self.binary, behaviors={"_noreply": True})
        quiet.set(key, value)
        quiet.append(key, "!")
        quiet.get(key)
        quiet.disconnect_all()

    gat = meta = version = None

    def stats(self):
        return len(self.c.get_stats()[0][1])

    def stats_of(self, group):
        return self.c.get_stats(group)[0][1]

    def flush(self):
        return self.c.flush_all()


class PylibmcBinary(Pylibmc):
    binary = True


class Emcache(Pymemcache):
    def __init__(self):
        import emcache
        self.emcache = emcache
        self.address = emcache.MemcachedHostAddress(host, int(port))
        self.loop = asyncio.new_event_loop()
        self.c = self.wait(emcache.create_client([self.address], timeout=10.0))

    def wait(self, what):
        return self.loop.run_until_complete(what)

    def done(self, what):
        """True if a store was done; emcache raises where it was not."""
        try:
            self.wait(what)
            return True
        except self.emcache.NotStoredStorageCommandError:
            return False
        except self.emcache.StorageCommandError:
            return False
        except self.emcache.NotFoundCommandError:
            return False

    def set(self, key, value, ttl=0):
        return self.done(self.c.set(key.encode(), value.encode(), exptime=ttl))

    def get(self, key):
        item = self.wait(self.c.get(key.encode()))
        return item and item.value.decode()

    def get_multi(self, keys):
        items = self.wait(self.c.get_many([k.encode() for k in keys]))
        return {k.decode(): i.value.decode() for k, i in items.items()}

    def set_multi(self, values):
        async def all_of_them():
            await asyncio.gather(*(self.c.set(k.encode(), v.encode())
                                   for k, v in values.items()))
        self.wait(all_of_them())

    def gets(self, key):
        item = self.wait(self.c.gets(key.encode()))
        return item.value.decode(), item.cas

    def cas(self, key, value, token):
        return self.done(self.c.cas(key.encode(), value.encode(), token))

    def incr(self, key, by):
        return self.wait(self.c.increment(key.encode(), by))

    def decr(self, key, by):
        return self.wait(self.c.decrement(key.encode(), by))

    def touch(self, key, ttl):
        return self.done(self.c.touch(key.encode(), ttl))

    def gat(self, key, ttl):
        items = self.wait(self.c.gat_many(ttl, [key.encode(), b"emcache-none"]))
        equal(list(items), [key.encode()])
        return self.wait(self.c.gats(ttl, key.encode())).value.decode()

    def delete(self, key):
        return self.done(self.c.delete(key.encode()))

    def add(self, key, value):
        return self.done(self.c.add(key.encode(), value.encode()))

    def replace(self, key, value):
        return self.done(self.c.replace(key.encode(), value.encode()))

    def append(self, key, value):
        return self.done(self.c.append(key.encode(), value.encode()))

    def prepend(self, key, value):
        return self.done(self.c.prepend(key.encode(), value.encode()))

    def noreply(self, key, value):
        # Two connections: only what follows on the same one comes later for sure.
        async def quietly():
            await self.c.set(key.encode(), value.encode() + b"!", noreply=True)
            await self.c.delete(key.encode() + b"-none", noreply=True)
        self.wait(quietly())

    meta = stats_of = None

    def stats(self):
        return len(self.wait(self.c.stats(self.address)))

    def version(self):
        return self.wait(self.c.version(self.address))

    def flush(self):
        return self.done(self.c.flush_all(self.address))


ADAPTERS = {
    "pymemcache": Pymemcache,
    "python-memcached": PythonMemcached,
    "python-binary-memcached": PythonBinary,
    "pylibmc": Pylibmc,
    "pylibmc-binary": PylibmcBinary,
    "emcache": Emcache,
}


class Checks:
    """The features, in the order in which they are tried."""

    def __init__(self, client):
        self.c = client
        self.at = name + "-"

    def method(self, which):
        found = getattr(self.c, which)
        if found is None:
            raise Lacks
        return found

    def set_get(self):
        equal(bool(self.c.set(self.at + "a", "one")), True)
        equal(self.c.get(self.at + "a"), "one")
        equal(self.c.get(self.at + "none"), None)
        equal(bool(self.c.set(self.at + "a", "")), True)
        equal(self.c.get(self.at + "a"), "")

    def get_multi(self):
        values = {f"{self.at}m{i}": f"value {i}" for i in range(200)}
        self.c.set_multi(values)
        equal(self.c.get_multi(list(values) + [self.at + "none"]), values)

    def cas(self):
        key = self.at + "cas"
        self.c.set(key, "one")
        value, token = self.c.gets(key)
        equal(value, "one")
        equal(bool(self.c.cas(key, "two", token)), True)
        try:
            again = self.c.cas(key, "three", token)
        except Exception as e:
            again = "Exists" not in type(e).__name__ and e
        equal(bool(again), False)
        equal(self.c.get(key), "two")

    def incr_decr(self):
        key = self.at + "n"
        self.c.set(key, "10")
        equal(self.c.incr(key, 5), 15)
        equal(self.c.decr(key, 4), 11)
        equal(self.c.decr(key, 40), 0)
        equal(self.c.incr(key, 2**30), 2**30)

    def touch(self):
        touch = self.method("touch")
        self.c.set(self.at + "t", "one")
        equal(bool(touch(self.at + "t", 100)), True)
        try:
            absent = bool(touch(self.at + "none", 100))
        except getattr(self.c, "NotFound", KeyError):
            absent = False
        equal(absent, False)
        self.c.touch(self.at + "t", 1)
        eventually(lambda: self.c.get(self.at + "t"), None)

    def gat(self):
        gat = self.method("gat")
        self.c.set(self.at + "g", "one")
        equal(gat(self.at + "g", 100), "one")

    def delete(self):
        self.c.set(self.at + "d", "one")
        equal(bool(self.c.delete(self.at + "d")), True)
        equal(self.c.get(self.at + "d"), None)

    def add_replace(self):
        key = self.at + "add"

        def refused(call):
            try:
                return not call()
            except Exception as e:
                return "Exists" in type(e).__name__ or "NotStored" in type(e).__name__ \
                    or "NotFound" in type(e).__name__
        equal(refused(lambda: self.c.replace(key, "zero")), True)
        equal(bool(self.c.add(key, "one")), True)
        equal(refused(lambda: self.c.add(key, "two")), True)
        equal(bool(self.c.replace(key, "three")), True)
        equal(self.c.get(key), "three")

    def append_prepend(self):
        append, prepend = self.method("append"), self.method("prepend")
        self.c.set(self.at + "ap", "b")
        equal(bool(append(self.at + "ap", "c")), True)
        equal(bool(prepend(self.at + "ap", "a")), True)
        equal(self.c.get(self.at + "ap"), "abc")

    def large(self):
        for text in (LARGE, HUGE, "small"):
            equal(bool(self.c.set(self.at + "large", text)), True)
            equal(self.c.get(self.at + "large"), text)

    def long_key(self):
        key = self.at + "k" * (250 - len(self.at))
        equal(bool(self.c.set(key, "one")), True)
        equal(self.c.get(key), "one")

    def unicode(self):
        for key in ("żółw", "ключ", "鍵", "🔑"):
            equal(bool(self.c.set(self.at + key, key)), True)
            equal(self.c.get(self.at + key), key)

    def noreply(self):
        self.method("noreply")(self.at + "q", "one")
        eventually(lambda: self.c.get(self.at + "q"), "one!")

    def meta(self):
        self.method("meta")(self.at + "meta", "hello")

    def stats(self):
        equal(self.c.stats() > 10, True)

    def stats_of(self):
        stats_of = self.method("stats_of")
        self.c.set(self.at + "stats", "one")
        for group in ("items", "slabs", "sizes", "settings"):
            equal(len(stats_of(group)) > 0, True)
        # A client that fell out of step reads something else from here on.
        equal(self.c.get(self.at + "stats"), "one")

    def version(self):
        equal(self.method("version")()[:6], "1.6.18")

    def flush(self):
        self.c.set(self.at + "f", "one")
        equal(bool(self.c.flush()), True)
        equal(self.c.get(self.at + "f"), None)


checks = Checks(ADAPTERS[name]())
for feature, check in [
    ("set, get", checks.set_get),
    ("get of several keys", checks.get_multi),
    ("cas", checks.cas),
    ("incr, decr", checks.incr_decr),
    ("touch", checks.touch),
    ("gat", checks.gat),
    ("delete", checks.delete),
    ("add, replace", checks.add_replace),
    ("append, prepend", checks.append_prepend),
    ("values of 100 KB and 1 MB", checks.large),
    ("keys of 250 bytes", checks.long_key),
    ("unicode keys", checks.unicode),
    ("noreply", checks.noreply),
    ("meta commands", checks.meta),
    ("stats", checks.stats),
    ("stats of items, slabs, sizes and settings", checks.stats_of),
    ("version", checks.version),
    ("flush_all", checks.flush),
]:
    tell(feature, check)
