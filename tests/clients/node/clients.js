// One npm client: clients.js memcached|memjs HOST PORT. Prints a line a feature.

const assert = require("node:assert");
const { promisify } = require("node:util");

const [name, host, port] = process.argv.slice(2);
const where = `${host}:${port}`;
const at = (key) => `${name}-${key}`;
const LARGE = "x".repeat(100_000);
const HUGE = "y".repeat(1_000_000);

// The same methods over both. What is not there the client lacks.
function memcached() {
  const Memcached = require("memcached");
  const c = new Memcached(where, { timeout: 10000, retries: 0, poolSize: 2 });
  const p = (method) => promisify(c[method]).bind(c);
  const told = (call) => call.catch((e) => {
    if (/not stored|exists|NOT_FOUND/i.test(e.message)) return false;
    throw e;
  });
  return {
    set: (k, v) => p("set")(k, v, 0),
    get: (k) => p("get")(k),
    getMulti: (keys) => p("getMulti")(keys),
    cas: async (k) => {
      const item = await p("gets")(k);
      const first = await p("cas")(k, "two", item.cas, 0);
      return [item[k], first, await p("cas")(k, "three", item.cas, 0)];
    },
    incr: (k, n) => p("incr")(k, n),
    decr: (k, n) => p("decr")(k, n),
    touch: (k) => p("touch")(k, 100),
    delete: (k) => p("del")(k),
    add: (k, v) => told(p("add")(k, v, 0)),
    replace: (k, v) => told(p("replace")(k, v, 0)),
    append: (k, v) => p("append")(k, v),
    prepend: (k, v) => p("prepend")(k, v),
    stats: async () => Object.keys((await p("stats")())[0]).length,
    groups: async () => {
      for (const group of ["settings", "slabs", "items"]) {
        assert.ok(Object.keys((await p(group)())[0]).length > 1, group);
      }
      await p("cachedump")(where, 1, 10);
    },
    version: async () => (await p("version")())[0].version,
    flush: () => p("flush")(),
    end: () => c.end(),
  };
}

function memjs() {
  const c = require("memjs").Client.create(where, { timeout: 10, retries: 0, logger: console });
  const text = (v) => (v === null ? undefined : v.toString());
  return {
    set: (k, v) => c.set(k, v, { expires: 0 }),
    get: async (k) => text((await c.get(k)).value),
    incr: async (k, n) => (await c.increment(k, n, { initial: 0 })).value,
    decr: async (k, n) => (await c.decrement(k, n, { initial: 0 })).value,
    touch: (k) => c.touch(k, 100),
    delete: (k) => c.delete(k),
    add: (k, v) => c.add(k, v, {}),
    replace: (k, v) => c.replace(k, v, {}),
    append: (k, v) => c.append(k, v),
    prepend: (k, v) => c.prepend(k, v),
    stats: () => new Promise((resolve, reject) => {
      c.stats((e, _, stats) => (e ? reject(e) : resolve(Object.keys(stats).length)));
    }),
    flush: () => c.flush(),
    end: () => c.close(),
  };
}

const c = { memcached, memjs }[name]();

const checks = {
  "set, get": async () => {
    assert.ok(await c.set(at("a"), "one"));
    assert.equal(await c.get(at("a")), "one");
    assert.equal(await c.get(at("none")), undefined);
  },
  "get of several keys": async () => {
    need("getMulti");
    const values = {};
    for (let i = 0; i < 200; i++) values[at("m" + i)] = "value " + i;
    await Promise.all(Object.entries(values).map(([k, v]) => c.set(k, v)));
    assert.deepEqual({ ...(await c.getMulti([...Object.keys(values), at("none")])) }, values);
  },
  "many at once": async () => {
    const keys = Array.from({ length: 200 }, (_, i) => at("p" + i));
    await Promise.all(keys.map((k) => c.set(k, k)));
    assert.deepEqual(await Promise.all(keys.map((k) => c.get(k))), keys);
  },
  cas: async () => {
    need("cas");
    await c.set(at("cas"), "one");
    assert.deepEqual(await c.cas(at("cas")), ["one", true, false]);
    assert.equal(await c.get(at("cas")), "two");
  },
  "incr, decr": async () => {
    await c.set(at("n"), "10");
    assert.equal(await c.incr(at("n"), 5), 15);
    assert.equal(await c.decr(at("n"), 4), 11);
  },
  touch: async () => {
    await c.set(at("t"), "one");
    assert.ok(await c.touch(at("t")));
  },
  gat: async () => need("gat"),
  delete: async () => {
    await c.set(at("d"), "one");
    assert.ok(await c.delete(at("d")));
    assert.equal(await c.get(at("d")), undefined);
  },
  "add, replace": async () => {
    await c.delete(at("add")).catch(() => {});
    assert.ok(!(await c.replace(at("add"), "zero")));
    assert.ok(await c.add(at("add"), "one"));
    assert.ok(!(await c.add(at("add"), "two")));
    assert.ok(await c.replace(at("add"), "three"));
    assert.equal(await c.get(at("add")), "three");
  },
  "append, prepend": async () => {
    await c.set(at("ap"), "b");
    assert.ok(await c.append(at("ap"), "c"));
    assert.ok(await c.prepend(at("ap"), "a"));
    assert.equal(await c.get(at("ap")), "abc");
  },
  "values of 100 KB and 1 MB": async () => {
    for (const text of [LARGE, HUGE, "small"]) {
      assert.ok(await c.set(at("large"), text));
      assert.ok((await c.get(at("large"))) === text, "another value");
    }
  },
  "unicode keys": async () => {
    for (const key of ["żółw", "ключ", "鍵", "🔑"]) {
      assert.ok(await c.set(at(key), key));
      assert.equal(await c.get(at(key)), key);
    }
  },
  noreply: async () => need("noreply"),
  stats: async () => assert.ok((await c.stats()) > 10),
  "stats of items, slabs and settings, list of keys": async () => {
    need("groups");
    await c.set(at("stats"), "one");
    await c.groups();
    assert.equal(await c.get(at("stats")), "one");
  },
  version: async () => {
    need("version");
    assert.match(await c.version(), /^1\.6\.18/);
  },
  flush_all: async () => {
    await c.set(at("f"), "one");
    assert.ok(await c.flush());
    assert.equal(await c.get(at("f")), undefined);
  },
};

class Lacks extends Error {}

function need(method) {
  if (!c[method]) throw new Lacks();
}

(async () => {
  for (const [feature, check] of Object.entries(checks)) {
    try {
      await check();
      console.log(`works ${feature}`);
    } catch (e) {
      const why = String(e && e.message).replaceAll("\n", " ").slice(0, 300);
      console.log(e instanceof Lacks ? `lacks ${feature}` : `fails ${feature}: ${why}`);
    }
  }
  c.end();
})();
