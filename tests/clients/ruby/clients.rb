# Ruby's dalli: clients.rb HOST PORT. Prints a line a feature.

require "dalli"
require "logger"

host, port = ARGV
Dalli.logger = Logger.new(File::NULL)
WHERE = "#{host}:#{port}"
AT = "ruby-"
LARGE = "x" * 100_000
HUGE = "y" * 1_000_000
C = Dalli::Client.new(WHERE, socket_timeout: 10, value_max_bytes: 4_000_000)

# As it is, and not as Ruby writes objects.
RAW = { raw: true }.freeze

class Lacks < StandardError; end

def equal(got, want)
  raise "#{got.inspect[0, 100]} instead of #{want.inspect[0, 100]}" unless got == want
end

def tell(feature)
  yield
  puts "works #{feature}"
rescue Lacks
  puts "lacks #{feature}"
rescue StandardError => e
  puts "fails #{feature}: #{"#{e.class} #{e.message}".tr("\n", " ")[0, 300]}"
end

tell("set, get") do
  C.set("#{AT}a", "one")
  equal(C.get("#{AT}a"), "one")
  equal(C.get("#{AT}none"), nil)
end
tell("get of several keys") do
  values = (0...200).to_h { |i| ["#{AT}m#{i}", "value #{i}"] }
  values.each { |key, value| C.set(key, value) }
  equal(C.get_multi(*values.keys, "#{AT}none"), values)
end
tell("cas") do
  C.set("#{AT}cas", "one")
  equal(!!C.cas("#{AT}cas") { |value| "#{value} two" }, true)
  stale = C.cas("#{AT}cas") do
    C.set("#{AT}cas", "three")
    "four"
  end
  equal(!!stale, false)
  equal(C.get("#{AT}cas"), "three")
end
tell("incr, decr") do
  C.set("#{AT}n", "10", nil, RAW)
  equal(C.incr("#{AT}n", 5), 15)
  equal(C.decr("#{AT}n", 4), 11)
  equal(C.incr("#{AT}none", 1), nil)
  C.delete("#{AT}new")
  equal(C.incr("#{AT}new", 1, nil, 7), 7)
end
tell("touch") do
  C.set("#{AT}t", "one")
  equal(!!C.touch("#{AT}t", 100), true)
  equal(!!C.touch("#{AT}none", 100), false)
end
tell("gat") do
  C.set("#{AT}g", "one")
  equal(C.gat("#{AT}g", 100), "one")
end
tell("delete") do
  C.set("#{AT}d", "one")
  equal(C.delete("#{AT}d"), true)
  equal(C.get("#{AT}d"), nil)
end
tell("add, replace") do
  C.delete("#{AT}add")
  # The token of what was stored; false or 0 where nothing was.
  is_stored = ->(token) { ![nil, false, 0].include?(token) }
  equal(is_stored[C.replace("#{AT}add", "zero")], false)
  equal(is_stored[C.add("#{AT}add", "one")], true)
  equal(is_stored[C.add("#{AT}add", "two")], false)
  equal(is_stored[C.replace("#{AT}add", "three")], true)
  equal(C.get("#{AT}add"), "three")
end
tell("append, prepend") do
  C.set("#{AT}ap", "b", nil, RAW)
  equal(!!C.append("#{AT}ap", "c"), true)
  equal(!!C.prepend("#{AT}ap", "a"), true)
  equal(C.get("#{AT}ap", RAW), "abc")
end
tell("values of 100 KB and 1 MB") do
  [LARGE, HUGE, "small"].each do |text|
    C.set("#{AT}large", text)
    equal(C.get("#{AT}large") == text, true)
  end
end
tell("keys of 250 bytes") do
  key = AT.ljust(250, "k")
  C.set(key, "one")
  equal(C.get(key), "one")
end
tell("unicode keys") do
  %w[żółw ключ 鍵 🔑].each do |key|
    C.set(AT + key, key)
    equal(C.get(AT + key).force_encoding("UTF-8"), key)
  end
end
tell("quiet") do
  C.multi do
    C.set("#{AT}q", "one", nil, RAW)
    C.append("#{AT}q", "!")
    C.delete("#{AT}none")
  end
  equal(C.get("#{AT}q", RAW), "one!")
end
tell("stats") { equal(C.stats[WHERE].size > 10, true) }
tell("stats of items, slabs and settings") do
  C.set("#{AT}stats", "one")
  %i[items slabs settings].each { |group| equal(C.stats(group)[WHERE].empty?, false) }
  equal(C.get("#{AT}stats"), "one")
end
tell("version") { equal(C.version[WHERE], "1.6.18") }
tell("flush_all") do
  C.set("#{AT}f", "one")
  C.flush
  equal(C.get("#{AT}f"), nil)
end
