<?php
// One PHP extension: clients.php memcached|memcached-binary|memcache HOST PORT. Prints a line a feature.

[, $name, $host, $port] = $argv;
$where = "$host:$port";
define('LARGE', str_repeat('x', 100000));
define('HUGE', str_repeat('y', 1000000));

class Lacks extends Exception {}

set_error_handler(function ($level, $text) {
    throw new ErrorException($text);
}, E_ALL & ~E_DEPRECATED);
ini_set('error_reporting', E_ALL & ~E_DEPRECATED);

function equal($got, $want) {
    if ($got !== $want) {
        $short = fn ($v) => substr(var_export($v, true), 0, 100);
        throw new Exception($short($got) . ' instead of ' . $short($want));
    }
}

function memcached_client($host, $port, $binary) {
    $c = new Memcached();
    $c->setOption(Memcached::OPT_BINARY_PROTOCOL, $binary);
    $c->setOption(Memcached::OPT_COMPRESSION, false);
    $c->setOption(Memcached::OPT_RECV_TIMEOUT, 10000000);
    $c->addServer($host, (int) $port);
    return $c;
}

function memcache_client($host, $port) {
    $c = new Memcache();
    $c->addServer($host, (int) $port, false, 1, 10);
    return $c;
}

$is_memcache = $name === 'memcache';
$c = $is_memcache ? memcache_client($host, $port)
    : memcached_client($host, $port, $name === 'memcached-binary');
$at = "php-$name-";
$need = function ($method) use ($c) {
    if (!method_exists($c, $method)) {
        throw new Lacks();
    }
};
$store = fn ($key, $value, $how = 'set') => $is_memcache
    ? $c->$how($key, $value, 0, 0) : $c->$how($key, $value);
// What a monitor shows: memadmin and its like read these one after the other on one connection.
$groups = array_merge(['items', 'slabs', 'sizes'], $is_memcache ? [] : ['settings']);

$checks = [
    'set, get' => function () use ($c, $at, $store) {
        equal($store($at . 'a', 'one'), true);
        equal($c->get($at . 'a'), 'one');
        equal($c->get($at . 'none'), false);
    },
    'get of several keys' => function () use ($c, $at, $store, $is_memcache) {
        $values = [];
        for ($i = 0; $i < 200; $i++) {
            $values[$at . "m$i"] = "value $i";
            $store($at . "m$i", "value $i");
        }
        $keys = array_merge(array_keys($values), [$at . 'none']);
        $got = $is_memcache ? $c->get($keys) : $c->getMulti($keys);
        ksort($got);
        ksort($values);
        equal($got, $values);
    },
    'cas' => function () use ($c, $at, $store, $is_memcache) {
        $key = $at . 'cas';
        $store($key, 'one');
        if ($is_memcache) {
            $flags = $token = 0;
            $c->get($key, $flags, $token);
            equal($c->cas($key, 'two', 0, 0, $token), true);
            equal($c->cas($key, 'three', 0, 0, $token), false);
        } else {
            $token = $c->get($key, null, Memcached::GET_EXTENDED)['cas'];
            equal($c->cas($token, $key, 'two'), true);
            equal($c->cas($token, $key, 'three'), false);
        }
        equal($c->get($key), 'two');
    },
    'incr, decr' => function () use ($c, $at, $store) {
        $store($at . 'n', '10');
        equal($c->increment($at . 'n', 5), 15);
        equal($c->decrement($at . 'n', 4), 11);
    },
    'touch' => function () use ($c, $at, $store, $need) {
        $need('touch');
        $store($at . 't', 'one');
        equal($c->touch($at . 't', 100), true);
        equal($c->touch($at . 'none', 100), false);
    },
    'delete' => function () use ($c, $at, $store) {
        $store($at . 'd', 'one');
        equal($c->delete($at . 'd'), true);
        equal($c->get($at . 'd'), false);
    },
    'add, replace' => function () use ($c, $at, $store) {
        $c->delete($at . 'add');
        equal($store($at . 'add', 'zero', 'replace'), false);
        equal($store($at . 'add', 'one', 'add'), true);
        equal($store($at . 'add', 'two', 'add'), false);
        equal($store($at . 'add', 'three', 'replace'), true);
        equal($c->get($at . 'add'), 'three');
    },
    'append, prepend' => function () use ($c, $at, $store, $need) {
        $need('append');
        $store($at . 'ap', 'b');
        equal($store($at . 'ap', 'c', 'append'), true);
        equal($store($at . 'ap', 'a', 'prepend'), true);
        equal($c->get($at . 'ap'), 'abc');
    },
    'values of 100 KB and 1 MB' => function () use ($c, $at, $store) {
        foreach ([LARGE, HUGE, 'small'] as $text) {
            equal($store($at . 'large', $text), true);
            equal($c->get($at . 'large') === $text, true);
        }
    },
    'keys of 250 bytes' => function () use ($c, $at, $store) {
        $key = str_pad($at, 250, 'k');
        equal($store($key, 'one'), true);
        equal($c->get($key), 'one');
    },
    'stats' => function () use ($c, $where) {
        $said = $c->getStats();
        equal(count($said[$where] ?? $said) > 10, true);
    },
    'stats of items, slabs, sizes, settings' => function () use (
        $c, $at, $store, $where, $groups, $is_memcache
    ) {
        $store($at . 'stats', 'one');
        foreach ($groups as $group) {
            $said = $is_memcache ? $c->getExtendedStats($group) : $c->getStats($group);
            equal(is_array($said) && count($said[$where]) > 0, true);
        }
        // A client that fell out of step answers false from here on.
        equal($c->get($at . 'stats'), 'one');
    },
    'list of keys' => function () use ($c, $at, $store, $where, $is_memcache) {
        $store($at . 'listed', 'one');
        if ($is_memcache) {
            equal(is_array($c->getExtendedStats('cachedump', 1, 10)), true);
        } elseif ($c->getOption(Memcached::OPT_BINARY_PROTOCOL)) {
            throw new Lacks();
        } else {
            equal(is_array($c->getAllKeys()), true);
        }
        equal($c->get($at . 'listed'), 'one');
    },
    'version' => function () use ($c, $where, $is_memcache) {
        $said = $is_memcache ? $c->getVersion() : $c->getVersion()[$where];
        equal($said, '1.6.18');
    },
    'flush_all' => function () use ($c, $at, $store) {
        $store($at . 'f', 'one');
        equal($c->flush(), true);
        equal($c->get($at . 'f'), false);
    },
];

foreach ($checks as $feature => $check) {
    try {
        $check();
        echo "works $feature\n";
    } catch (Lacks $e) {
        echo "lacks $feature\n";
    } catch (Throwable $e) {
        $why = substr(str_replace("\n", ' ', $e->getMessage()), 0, 300);
        echo "fails $feature: $why\n";
    }
}
