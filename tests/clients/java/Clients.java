// spymemcached: Clients text|binary HOST PORT. Prints a line a feature.

import java.net.InetSocketAddress;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.TimeUnit;
import java.util.logging.Level;
import java.util.logging.Logger;
import net.spy.memcached.AddrUtil;
import net.spy.memcached.CASResponse;
import net.spy.memcached.CASValue;
import net.spy.memcached.ConnectionFactoryBuilder;
import net.spy.memcached.ConnectionFactoryBuilder.Protocol;
import net.spy.memcached.MemcachedClient;

public class Clients {
    interface Check {
        void run() throws Exception;
    }

    static class Lacks extends Exception {}

    static void equal(Object got, Object want) throws Exception {
        if (!Objects.equals(got, want)) {
            throw new Exception(brief(got) + " instead of " + brief(want));
        }
    }

    static String brief(Object o) {
        String text = String.valueOf(o);
        return text.substring(0, Math.min(100, text.length()));
    }

    static void tell(String feature, Check check) {
        try {
            check.run();
            System.out.println("works " + feature);
        } catch (Lacks e) {
            System.out.println("lacks " + feature);
        } catch (Throwable e) {
            String why = (e.getClass().getSimpleName() + " " + e.getMessage()).replace('\n', ' ');
            System.out.println("fails " + feature + ": " + why);
        }
    }

    public static void main(String[] args) throws Exception {
        System.setProperty("net.spy.log.LoggerImpl", "net.spy.memcached.compat.log.SunLogger");
        Logger.getLogger("net.spy.memcached").setLevel(Level.OFF);
        String dialect = args[0];
        String at = "java-" + dialect + "-";
        boolean binary = dialect.equals("binary");
        Protocol protocol = binary ? Protocol.BINARY : Protocol.TEXT;
        MemcachedClient c = new MemcachedClient(
            new ConnectionFactoryBuilder().setProtocol(protocol).setOpTimeout(10000).build(),
            AddrUtil.getAddresses(args[1] + ":" + args[2]));

        tell("set, get", () -> {
            equal(c.set(at + "a", 0, "one").get(), true);
            equal(c.get(at + "a"), "one");
            equal(c.get(at + "none"), null);
        });
        tell("get of several keys", () -> {
            Map<String, Object> values = new HashMap<>();
            for (int i = 0; i < 200; i++) {
                values.put(at + "m" + i, "value " + i);
                c.set(at + "m" + i, 0, "value " + i).get();
            }
            Map<String, Object> asked = new HashMap<>(values);
            asked.put(at + "none", "");
            equal(c.getBulk(asked.keySet()), values);
        });
        tell("cas", () -> {
            c.set(at + "cas", 0, "one").get();
            CASValue<Object> value = c.gets(at + "cas");
            equal(c.cas(at + "cas", value.getCas(), "two"), CASResponse.OK);
            equal(c.cas(at + "cas", value.getCas(), "three"), CASResponse.EXISTS);
            equal(c.get(at + "cas"), "two");
        });
        tell("incr, decr", () -> {
            c.set(at + "n", 0, "10").get();
            equal(c.incr(at + "n", 5), 15L);
            equal(c.decr(at + "n", 4), 11L);
            equal(c.incr(at + "none", 1), -1L);
            c.delete(at + "new").get();
            equal(c.incr(at + "new", 1, 7), 7L);
        });
        tell("touch", () -> {
            c.set(at + "t", 0, "one").get();
            equal(c.touch(at + "t", 100).get(), true);
        });
        tell("gat", () -> {
            if (!binary) {
                throw new Lacks();
            }
            c.set(at + "g", 0, "one").get();
            equal(c.getAndTouch(at + "g", 100).getValue(), "one");
        });
        tell("delete", () -> {
            c.set(at + "d", 0, "one").get();
            equal(c.delete(at + "d").get(), true);
            equal(c.get(at + "d"), null);
        });
        tell("add, replace", () -> {
            c.delete(at + "add").get();
            equal(c.replace(at + "add", 0, "zero").get(), false);
            equal(c.add(at + "add", 0, "one").get(), true);
            equal(c.add(at + "add", 0, "two").get(), false);
            equal(c.replace(at + "add", 0, "three").get(), true);
            equal(c.get(at + "add"), "three");
        });
        tell("append, prepend", () -> {
            c.set(at + "ap", 0, "b").get();
            equal(c.append(at + "ap", "c").get(), true);
            equal(c.prepend(at + "ap", "a").get(), true);
            equal(c.get(at + "ap"), "abc");
        });
        tell("values of 100 KB and 1 MB", () -> {
            for (int size : List.of(100_000, 1_000_000, 5)) {
                // As bytes, which spymemcached does not compress.
                byte[] value = new byte[size];
                Arrays.fill(value, (byte) 'x');
                equal(c.set(at + "large", 0, value).get(), true);
                equal(Arrays.equals((byte[]) c.get(at + "large"), value), true);
            }
        });
        tell("keys of 250 bytes", () -> {
            String key = at + "k".repeat(250 - at.length());
            equal(c.set(key, 0, "one").get(), true);
            equal(c.get(key), "one");
        });
        tell("unicode keys", () -> {
            for (String key : List.of("żółw", "ключ", "鍵", "🔑")) {
                equal(c.set(at + key, 0, key).get(), true);
                equal(c.get(at + key), key);
            }
        });
        tell("stats", () -> {
            Map<String, String> said = c.getStats().values().iterator().next();
            equal(said.size() > 10, true);
        });
        tell("stats of items, slabs, sizes and settings", () -> {
            c.set(at + "stats", 0, "one").get();
            for (String group : List.of("items", "slabs", "sizes", "settings")) {
                Map<String, String> said = c.getStats(group).values().iterator().next();
                equal(said.isEmpty(), false);
            }
            equal(c.get(at + "stats"), "one");
        });
        tell("version", () -> equal(c.getVersions().values().iterator().next(), "1.6.18"));
        tell("flush_all", () -> {
            c.set(at + "f", 0, "one").get();
            equal(c.flush().get(), true);
            equal(c.get(at + "f"), null);
        });
        c.shutdown(5, TimeUnit.SECONDS);
    }
}
