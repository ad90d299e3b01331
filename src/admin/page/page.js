'use strict';
(() => {
  const SPAN = 600;      // seconds that charts show
  const SMOOTH = 5000;   // ms over which what goes on now is averaged
  const LATE = 5000;     // ms until an answer counts as missing
  const $ = (id) => document.getElementById(id);

  // What changes is changed in place: nothing blinks, and what is selected stays so.
  const set = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const style = (node, name) => { if (node.className !== name) node.className = name; };
  const make = (tag, name, ...children) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    node.append(...children);
    return node;
  };
  const svg = (tag, name) => {
    const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
    node.setAttribute('class', name);
    return node;
  };
  // The children of `parent`, one for each of `names`, in their order; those that stay are kept.
  const rows = (parent, names, create, update) => {
    const old = new Map([...parent.children].map((c) => [c.dataset.key, c]));
    const times = new Map();
    names.forEach((name, at) => {
      const again = times.get(name) || 0, key = again + ' ' + name;
      times.set(name, again + 1);
      let node = old.get(key);
      if (!node) { node = create(name); node.dataset.key = key; }
      old.delete(key);
      if (parent.children[at] !== node) parent.insertBefore(node, parent.children[at] || null);
      update(node, at);
    });
    old.forEach((node) => node.remove());
  };

  const count = (n) => n >= 1e9 ? (n / 1e9).toFixed(1) + ' G' : n >= 1e6 ? (n / 1e6).toFixed(1) + ' M'
    : n >= 1e4 ? (n / 1e3).toFixed(1) + ' k' : Math.round(n).toLocaleString('en');
  const rate = (n) => n === null ? '–' : n > 0 && n < 10 ? n.toFixed(1) : count(n);
  const bytes = (n) => n >= 1073741824 ? (n / 1073741824).toFixed(1) + ' GiB' : n >= 1048576 ? (n / 1048576).toFixed(1) + ' MiB'
    : n >= 1024 ? (n / 1024).toFixed(1) + ' KiB' : n + ' B';
  const micros = (n) => n >= 1e6 ? (n / 1e6).toFixed(2) + ' s' : n >= 1e4 ? Math.round(n / 1e3) + ' ms'
    : n >= 1e3 ? (n / 1e3).toFixed(1) + ' ms' : Math.round(n) + ' µs';
  const percent = (n) => n === null ? '–' : (n * 100).toFixed(n < 0.9995 ? 1 : 0) + ' %';
  const recent = (latency, name) => latency.count ? micros(latency[name]) : '–';
  const span = (s) => s < 120 ? Math.round(s) + ' s' : s < 7200 ? Math.round(s / 60) + ' min'
    : s < 172800 ? Math.round(s / 3600) + ' h' : Math.round(s / 86400) + ' days';
  const clock = (unix) => new Date(unix * 1000).toLocaleTimeString('en-GB');
  const share = (hits, misses) => hits + misses > 0 ? hits / (hits + misses) : null;

  // The last answers, for what happened since: [milliseconds, answer].
  let past = [];
  // How fast what `number` finds in an answer grows, a second; `start` if nothing is known yet.
  const speed = (number, start) => {
    const [then, before] = past[0], [now, after] = past[past.length - 1];
    const [a, b] = [number(before), number(after)];
    if (now - then < 500 || a === undefined) return start;
    // Less than before: the counters were set to 0.
    return Math.max(0, b - a) / (now - then) * 1000;
  };
  const last = (list) => list.length ? list[list.length - 1] : 0;

  const figures = (data) => {
    const m = data.magent, pools = data.pools, step = data.history_step;
    const sum = (number) => pools.reduce((all, p) => all + number(p), 0);
    const grows = (name) => speed((d) => d.pools.reduce((all, p) => all + p[name], 0), sum((p) => last(p.history[name.replace('get_', '')] || [])) / step);
    const answers = speed((d) => d.pools.reduce((all, p) => all + p.latency.count, 0), sum((p) => last(p.history.answers)) / step);
    const errors = speed((d) => d.pools.reduce((all, p) => all + p.server_errors, 0), 0);
    const asked = pools.map((p) => p.latency_10s).filter((l) => l.count);
    const slowest = (name) => asked.length ? micros(Math.max(...asked.map((l) => l[name]))) : '–';
    const list = [
      ['requests/s', rate(answers), errors > 0 ? rate(errors) + ' errors/s' : ''],
      ['hit rate', percent(share(grows('get_hits'), grows('get_misses'))), ''],
      ['latency p50', slowest('p50_us'), pools.length > 1 ? 'slowest pool' : 'last 10 s'],
      ['latency p99', slowest('p99_us'), pools.length > 1 ? 'slowest pool' : 'last 10 s'],
      ['clients', count(m.curr_connections), 'of ' + count(m.max_connections), m.curr_connections / m.max_connections],
      ['bytes in flight', bytes(m.bytes_in_flight), 'of ' + bytes(m.limit_maxbytes), m.bytes_in_flight / m.limit_maxbytes],
      ['memory', m.resident_memory_bytes === undefined ? '–' : bytes(m.resident_memory_bytes), 'of the process'],
      ['processor', percent(speed((d) => d.magent.cpu_user_seconds + d.magent.cpu_system_seconds, null)), 'of one core'],
    ];
    rows($('figures'), list.map((f) => f[0]), (name) => {
      const bar = make('div', 'bar', make('i'));
      return make('div', '', make('dt', '', name), make('dd', '', make('span'), make('small')), bar);
    }, (node, at) => {
      const [, value, note, part] = list[at], [, dd, bar] = node.children;
      set(dd.children[0], value);
      set(dd.children[1], note);
      bar.hidden = part === undefined;
      bar.firstChild.style.width = Math.min(100, (part || 0) * 100) + '%';
      bar.classList.toggle('full', part > 0.9);
    });
  };

  // One chart of the last ten minutes: `lines` has a list of numbers each, the newest last.
  const chart = (title, show, other) => {
    const node = make('figure', ''), value = make('b'), read = make('span');
    const picture = svg('svg', 'chart'), most = make('span');
    picture.setAttribute('viewBox', `0 0 ${SPAN} 100`);
    picture.setAttribute('preserveAspectRatio', 'none');
    picture.setAttribute('aria-hidden', 'true');
    const bands = svg('g', ''), area = svg('path', 'area'), first = svg('path', ''), second = svg('path', 'second');
    const cursor = svg('path', 'cursor');
    picture.append(bands, area, second, first, cursor);
    const name = make('span', '', other ? make('span', 'first', title) : title, ' ', value);
    if (other) name.append(' ', make('span', 'second', other[0]), ' ', other[1]);
    node.append(make('figcaption', '', name, read), picture,
      make('div', 'axis', make('span', '', '10 min ago'), most, make('span', '', 'now')));
    let lines = [[]], end = 0, late = 0, step = 5, top = 1;
    const x = (at) => SPAN - late - (lines[0].length - 1 - at) * step;
    const path = (list) => {
      let text = '', pen = 'M';
      list.forEach((n, at) => {
        if (n === null) { pen = 'M'; return; }
        text += pen + x(at).toFixed(1) + ' ' + (98 - n / top * 92).toFixed(1);
        pen = 'L';
      });
      return text;
    };
    const put = (what, text) => { if (what.getAttribute('d') !== text) what.setAttribute('d', text); };
    const point = (event) => {
      const box = picture.getBoundingClientRect();
      const at = Math.round(lines[0].length - 1 - ((box.right - event.clientX) / box.width * SPAN - late) / step);
      if (!(at >= 0 && at < lines[0].length)) return leave();
      put(cursor, 'M' + x(at) + ' 0V100');
      set(read, clock(end - (lines[0].length - 1 - at) * step) + '  ' + lines.map((l) => l[at] === null ? '–' : show(l[at])).join(' / '));
    };
    const leave = () => { put(cursor, ''); set(read, ''); };
    picture.addEventListener('pointermove', point);
    picture.addEventListener('pointerleave', leave);
    node.draw = ([text, more], all, outages, until, now, every, highest) => {
      [lines, end, late, step] = [all, until, now - until, every];
      top = highest || Math.max(1, ...all.flat().filter((n) => n !== null)) * 1.05;
      set(value, text);
      if (other) set(other[1], more);
      set(most, all[0].length ? 'top ' + show(highest || top / 1.05) : '');
      put(first, path(all[0]));
      put(second, all[1] ? path(all[1]) : '');
      const whole = path(all[0].map((n) => n || 0));
      put(area, whole ? whole + 'V100H' + x(0).toFixed(1) + 'Z' : '');
      rows(bands, outages.map((o) => o.key), () => { const band = svg('rect', ''); band.append(svg('title', '')); return band; }, (band, at) => {
        const o = outages[at];
        const from = Math.max(0, SPAN - (now - o.from)), to = SPAN - Math.max(0, now - o.to);
        band.setAttribute('class', o.isBackup ? 'band backup' : 'band');
        band.setAttribute('x', from);
        band.setAttribute('width', Math.max(1.5, to - from));
        band.setAttribute('height', 100);
        set(band.firstChild, o.title);
      });
    };
    return node;
  };

  // When servers of a pool were away, in the seconds that charts show.
  const outages = (data, pool, now) => data.servers.filter((s) => pool.members.includes(s.name)).flatMap((s) =>
    s.outages.map((o) => ({ key: s.name + o.from, from: o.from, to: o.to || now, isBackup: s.role === 'backup', title: s.name + ': ' + o.why }))
      .filter((o) => o.to > now - SPAN));

  const pools = (data) => {
    const now = data.magent.time, step = data.history_step;
    rows($('pools'), data.pools.map((p) => p.name), (name) => {
      const charts = [chart('requests/s', rate), chart('hit rate', percent), chart('p50', micros, ['p99', make('b')])];
      const node = make('section', 'card', make('h2', '', make('span', '', 'Pool ' + name), make('span', 'pill'), make('span', 'soft')), make('div', 'charts', ...charts));
      node.charts = charts;
      return node;
    }, (node, at) => {
      const p = data.pools[at], h = p.history, [, pill, note] = node.firstChild.children;
      const of = (number) => (d) => { const same = d.pools.find((other) => other.name === p.name); return same && number(same); };
      const answers = speed(of((q) => q.latency.count), last(h.answers) / step);
      const hits = share(speed(of((q) => q.get_hits), last(h.hits)), speed(of((q) => q.get_misses), last(h.misses)));
      const away = p.primaries - p.primaries_up + p.backups - p.backups_up;
      const isCut = data.unanswered.some((why) => why.startsWith('pool ' + p.name + ':'));
      style(pill, 'pill ' + (isCut ? 'down' : away ? 'some' : 'up'));
      set(pill, isCut ? 'keys without a server' : away ? away + (away > 1 ? ' servers away' : ' server away') : 'all servers up');
      set(note, p.primaries + (p.primaries > 1 ? ' primaries' : ' primary') + (p.backups ? ', ' + p.backups + (p.backups > 1 ? ' backups' : ' backup') : '')
        + ', ' + count(p.curr_connections) + (p.curr_connections === 1 ? ' client' : ' clients')
        + (p.moving ? '; keys move: ' + p.moving : ''));
      const bands = outages(data, p, now);
      const rates = h.hits.map((n, i) => share(n, h.misses[i]));
      node.charts[0].draw([rate(answers)], [h.answers.map((n) => n / step)], bands, data.history_end, now, step);
      node.charts[1].draw([percent(hits)], [rates], bands, data.history_end, now, step, 1);
      node.charts[2].draw([recent(p.latency_10s, 'p50_us'), recent(p.latency_10s, 'p99_us')], [h.p50_us, h.p99_us].map((l) => l.map((n) => n || null)), bands, data.history_end, now, step);
    });
  };

  const refill = (s, td) => {
    const r = s.refill, done = (r.refill_copied || 0) + (r.refill_there || 0) + (r.refill_gone || 0) + (r.refill_skipped || 0);
    const [bar, text] = td.children;
    bar.hidden = r.state !== 'running';
    if (r.state !== 'running') return set(text, r.state === 'none' || r.state === 'off' ? '–' : r.state);
    bar.max = Math.max(1, done + r.refill_to_go);
    bar.value = done;
    const same = (d) => d.servers.find((other) => other.name === s.name);
    const fast = speed((d) => { const o = same(d); return o && o.refill.refill_copied + o.refill.refill_there; }, 0);
    set(text, count(done) + ' of ' + count(done + r.refill_to_go) + (fast > 0 ? ', ' + span(r.refill_to_go / fast) + ' to go' : ''));
  };

  const why = (s, now) => {
    const o = s.outages[s.outages.length - 1];
    if (s.state === 'down') return 'for ' + span(now - s.since) + (s.last_error ? ': ' + s.last_error : '');
    const since = 'for ' + span(now - s.since);
    return o && o.to ? since + '; was away ' + span(o.to - o.from) + ': ' + o.why : since;
  };

  const servers = (data) => {
    const now = data.magent.time;
    rows($('servers'), data.servers.map((s) => s.name), () => {
      const cell = (name, label, ...children) => { const td = make('td', name, ...children); if (label) td.dataset.label = label; return td; };
      return make('tr', '', cell('state', '', make('span', 'pill')), cell('title', '', make('span', 'name'), make('span', 'why')), cell('', 'role'),
        cell('n', 'requests/s'), cell('n', 'p50'), cell('n', 'p99'), cell('n', 'in flight'), cell('n', 'journal'),
        cell('', 'refill', make('progress'), make('span')), cell('wide', 'last 10 minutes', make('span', 'strip')));
    }, (node, at) => {
      const s = data.servers[at], td = node.children;
      style(td[0].firstChild, 'pill ' + (s.drained ? 'off' : s.state));
      td[0].firstChild.title = s.state === 'warming' ? 'What it lacks is looked for at its backup.' : '';
      set(td[0].firstChild, s.drained ? 'drained' : s.state);
      set(td[1].children[0], s.name);
      set(td[1].children[1], why(s, now));
      const of = data.pools.length > 1 ? ' of ' + data.pools.filter((p) => p.members.includes(s.name)).map((p) => p.name).join(', ') : '';
      set(td[2], s.role.replace(',', ', ') + of);
      set(td[3], rate(speed((d) => { const o = d.servers.find((other) => other.name === s.name); return o && o.requests; }, null)));
      set(td[4], recent(s.latency_10s, 'p50_us'));
      set(td[5], recent(s.latency_10s, 'p99_us'));
      set(td[6], count(s.in_flight));
      set(td[7], s.journal_keys ? count(s.journal_keys) + ' keys, ' + bytes(s.journal_bytes) : '–');
      refill(s, td[8]);
      // Phones leave out what says nothing.
      [td[7], td[8]].forEach((cell) => cell.classList.toggle('nothing', cell.textContent === '–'));
      const seen = s.outages.filter((o) => (o.to || now) > now - SPAN);
      rows(td[9].firstChild, seen.map((o) => String(o.from)), () => make('i', s.role), (mark, n) => {
        const o = seen[n], from = Math.max(0, SPAN - (now - o.from)), to = SPAN - Math.max(0, now - (o.to || now));
        mark.style.left = from / SPAN * 100 + '%';
        mark.style.width = (to - from) / SPAN * 100 + '%';
        mark.title = clock(o.from) + ' – ' + (o.to ? clock(o.to) : 'now') + ': ' + o.why;
      });
    });
  };

  const head = (data) => {
    const m = data.magent, down = data.servers.filter((s) => s.state === 'down').length;
    const isCut = data.unanswered.length > 0;
    const state = isCut ? 'down' : down ? 'some' : 'up';
    const text = isCut ? 'some keys have no server' : down ? 'every key is answered, ' + down + (down > 1 ? ' servers are down' : ' server is down') : 'every key is answered';
    $('verdict').hidden = false;
    style($('verdict'), 'pill ' + state);
    set($('verdict'), text);
    set($('process'), m.version + ' on ' + m.host + ', process ' + m.pid + ', up for ' + span(m.uptime) + ', configuration ' + m.configuration);
    const others = new Set(data.servers.flatMap((s) => s.other_magents));
    set($('others'), others.size ? 'Other magents on these servers: ' + [...others].join(', ') : '');
    rows($('unanswered'), data.unanswered, (line) => make('li', '', line), () => {});
    document.title = (down ? down + ' down – ' : '') + 'magent ' + m.host;
    const colour = { up: '%2315743a', some: '%23d98a00', down: '%23c81e28' }[state];
    const icon = 'data:image/svg+xml,<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="3.5" fill="' + colour + '"/></svg>';
    if ($('icon').getAttribute('href') !== icon) $('icon').setAttribute('href', icon);
  };

  const lists = (data) => {
    const hot = data.hot.slice(0, 10);
    rows($('hot'), hot.map((k) => k.pool + ' ' + k.key), () => make('tr', '', make('td', 'name'), make('td'), make('td', 'n'), make('td', 'n')), (node, at) => {
      const k = hot[at];
      [k.key, k.pool, rate(k.per_second), percent(k.share)].forEach((text, i) => set(node.children[i], text));
    });
    const log = data.log.slice(-12).reverse();
    rows($('log'), log.map((l) => l.at + l.text), () => make('li', '', make('span'), make('span'), make('span')), (node, at) => {
      const l = log[at];
      style(node.children[1], l.level);
      [clock(l.at), l.level, l.text].forEach((text, i) => set(node.children[i], text));
    });
  };

  const show = (data) => {
    past.push([performance.now(), data]);
    const now = past[past.length - 1][0];
    while (past.length > 2 && now - past[1][0] >= SMOOTH) past.shift();
    [head, figures, pools, servers, lists].forEach((part) => part(data));
    $('live').hidden = false;
    $('silence').hidden = true;
  };

  const get = async (path) => {
    const answer = await fetch(path, { signal: AbortSignal.timeout(LATE), cache: 'no-store' });
    if (!answer.ok) throw new Error(answer.status + ' ' + answer.statusText);
    return answer.json();
  };

  let heard = Date.now() / 1000, isAsking = false;
  const renew = async () => {
    if (isAsking || document.hidden) return;
    isAsking = true;
    try {
      show(await get('page.json'));
      heard = Date.now() / 1000;
    } catch (error) {
      const why = error.name === 'TimeoutError' ? 'none within ' + LATE / 1000 + ' s' : error.message;
      set($('silence'), 'No answer since ' + clock(heard) + ': ' + why);
      $('silence').hidden = false;
      past = past.slice(-1);
    }
    isAsking = false;
  };
  setInterval(renew, 1000);
  document.addEventListener('visibilitychange', renew);
  renew();

  $('ask').addEventListener('submit', async (event) => {
    event.preventDefault();
    try {
      const routes = await get('route.json?key=' + encodeURIComponent($('key').value));
      $('route').replaceChildren(...routes.map((r) => {
        const farm = (role) => r[role + '_state'] ? [make('span', 'soft', role), make('span', '', r[role]), make('span', 'pill ' + r[role + '_state'], r[role + '_state'])] : [];
        const pool = routes.length > 1 ? ' in pool ' + r.pool : '';
        return make('div', '', make('p', '', make('b', '', r.answers === 'nobody' ? 'Nobody' : r.answers), ' answers' + pool + '.'),
          make('div', 'farms', ...farm('primary'), ...farm('backup')));
      }));
    } catch (error) {
      $('route').replaceChildren(make('p', '', error.message));
    }
  });
})();
