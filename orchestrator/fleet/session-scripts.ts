// The steps of a push session that must be one: each looks and writes in a single script, and doing it twice is harmless.
//
// Hash KEYS.session(id):
//   retain                 as the request says
//   count, consumed, log   of buckets accepted, of those consumed, of deliveries
//   touched                when something last came of the trainer or of a rank, in Redis's milliseconds
//   finished               1: nothing more is accepted
//   wanted, unspooled      sequences, separated by commas
//   passing                those whose file is the spool's until they are consumed: bodies, with retain: trainer
//   bucket:<seq>           JSON: what of the plan it holds
//   file:<seq>             JSON: the file that has its bytes now
//   spooled:<seq>          1: that file is the spool's, until the end
//   delivery:<seq>         counts from 0
//   state:<seq>            pending, consumed or wanted
//   number:<n>, key:<k>    -> its sequence, by the trainer's number and by a digest of what it holds
//   log:<i>                "seq|delivery", in order
//   sent:<rank>            "incarnation|log": what a rank has jobs for
// Hash KEYS.sessionRows(id):  index of a checkpoint tensor -> "from,to,seq,dtype;..."; dtype 0 is the plan's
// Hash KEYS.sessionTaken(id): "seq/rank" -> incarnation

import { TICK } from "./event-store.js";

/** Of every script: the time, and lists of numbers in a field. */
const COMMON = `${TICK}
local session = KEYS[1]
local time = redis.call('TIME')
local function touch() redis.call('HSET', session, 'touched', string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))) end
local function get(field) return redis.call('HGET', session, field) end
local function without(list, one)
  local kept = {}
  for each in string.gmatch(get(list) or '', '[^,]+') do if each ~= one then kept[#kept + 1] = each end end
  return kept
end
local function remove(list, one) redis.call('HSET', session, list, table.concat(without(list, one), ',')) end
local function add(list, one)
  local kept = without(list, one)
  kept[#kept + 1] = one
  redis.call('HSET', session, list, table.concat(kept, ','))
end
local function place(seq, file, spooled)
  local keeps = get('retain') ~= 'trainer'
  redis.call('HSET', session, 'file:' .. seq, file, 'spooled:' .. seq, (keeps and spooled == '1') and '1' or '0')
  if keeps and spooled ~= '1' then add('unspooled', seq) end
  if not keeps and spooled == '1' then add('passing', seq) end
end
local function tell(events, ticks, channel, reload, kept, seq, state)
  local payload = '{"bucket":' .. cjson.decode(get('bucket:' .. seq)).number .. ',"state":"' .. state .. '"}'
  tick(events, ticks, kept, 'bucket', payload)
  redis.call('PUBLISH', channel, reload)
end
`;

/**
 * KEYS session, rows. ARGV number or '', content key, bucket JSON (without its number), pieces "tensor,from,to,dtype;...", file JSON,
 * spooled 0|1, most pending. Returns what came of it, and a sequence or a tensor.
 */
export const ACCEPT = `${COMMON}
local number, key, bucket, pieces, file, spooled, most = unpack(ARGV)
local known = get('key:' .. key)
if known then
  if number ~= '' and get('number:' .. number) ~= known then return { 'other_number', known } end
  if get('state:' .. known) ~= 'wanted' then
    touch()
    return { 'known', known }
  end
  local delivery = redis.call('HINCRBY', session, 'delivery:' .. known, 1)
  redis.call('HSET', session, 'state:' .. known, 'pending')
  place(known, file, spooled)
  remove('wanted', known)
  local at = redis.call('HINCRBY', session, 'log', 1) - 1
  redis.call('HSET', session, 'log:' .. at, known .. '|' .. delivery)
  touch()
  return { 'again', known }
end
if get('finished') == '1' then return { 'finished', '' } end
if number ~= '' and get('number:' .. number) then return { 'number_taken', get('number:' .. number) } end
local count = tonumber(get('count') or '0')
if count - tonumber(get('consumed') or '0') >= tonumber(most) then return { 'full', tostring(count) } end
local ranges = {}
for tensor, from, to, dtype in string.gmatch(pieces, '(%d+),(%d+),(%d+),(%d+)') do
  local before = redis.call('HGET', KEYS[2], tensor) or ''
  for first, last, by, as in string.gmatch(before, '(%d+),(%d+),(%d+),(%d+)') do
    if tonumber(from) < tonumber(last) and tonumber(first) < tonumber(to) then return { 'overlap', tensor, by } end
    if as ~= dtype then return { 'other_dtype', tensor, by } end
  end
  ranges[#ranges + 1] = { tensor, before .. from .. ',' .. to .. ',' .. count .. ',' .. dtype .. ';' }
end
local seq = tostring(count)
for _, range in ipairs(ranges) do redis.call('HSET', KEYS[2], range[1], range[2]) end
local next = tonumber(get('next') or '0')
local named = number ~= '' and number or tostring(next)
redis.call('HSET', session, 'count', count + 1, 'next', math.max(next, tonumber(named) + 1),
  'bucket:' .. seq, '{"number":' .. named .. ',' .. string.sub(bucket, 2),
  'delivery:' .. seq, '0', 'state:' .. seq, 'pending', 'key:' .. key, seq, 'number:' .. named, seq)
place(seq, file, spooled)
local at = redis.call('HINCRBY', session, 'log', 1) - 1
redis.call('HSET', session, 'log:' .. at, seq .. '|0')
touch()
return { 'accepted', seq }
`;

const CONSUME = `
local function consume(taken, events, ticks, channel, reload, kept, seq, expected)
  if get('state:' .. seq) ~= 'pending' then return 0 end
  if get('spooled:' .. seq) ~= '1' and get('retain') ~= 'trainer' then return 0 end
  for rank, incarnation in string.gmatch(expected, '([^=,]+)=([^=,]*)') do
    if redis.call('HGET', taken, seq .. '/' .. rank) ~= incarnation then return 0 end
  end
  redis.call('HSET', session, 'state:' .. seq, 'consumed')
  redis.call('HINCRBY', session, 'consumed', 1)
  tell(events, ticks, channel, reload, kept, seq, 'consumed')
  return 1
end
`;

/** KEYS session, taken, events, ticks. ARGV seq, rank ('': nobody new), incarnation, "rank=incarnation,..." , reload, channel, ticks kept. */
export const TAKEN = `${COMMON}${CONSUME}
local seq, rank, incarnation, expected, reload, channel, kept = unpack(ARGV)
if not get('state:' .. seq) then return -1 end
if rank ~= '' then redis.call('HSET', KEYS[2], seq .. '/' .. rank, incarnation) end
touch()
return consume(KEYS[2], KEYS[3], KEYS[4], channel, reload, kept, seq, expected)
`;

/** KEYS session. ARGV seq, delivery, file JSON. Its bytes lie in the spool; 0: another file is the one, or another delivery has come. */
export const SPOOLED = `${COMMON}
local seq, delivery, file = unpack(ARGV)
if get('delivery:' .. seq) ~= delivery then return 0 end
if get('spooled:' .. seq) == '1' then return get('file:' .. seq) == file and 1 or 0 end
redis.call('HSET', session, 'file:' .. seq, file, 'spooled:' .. seq, '1')
remove('unspooled', seq)
return 1
`;

/** KEYS session, events, ticks. ARGV seq, reload, channel, ticks kept. consumed -> wanted, of one whose bytes nobody keeps. */
export const WANT = `${COMMON}
local seq, reload, channel, kept = unpack(ARGV)
if get('state:' .. seq) ~= 'consumed' or get('spooled:' .. seq) == '1' then return 0 end
redis.call('HSET', session, 'state:' .. seq, 'wanted')
redis.call('HINCRBY', session, 'consumed', -1)
add('wanted', seq)
touch()
tell(KEYS[2], KEYS[3], channel, reload, kept, seq, 'wanted')
return 1
`;

/** KEYS session. ARGV seq, delivery. Its file has been given up; 0: another delivery has come since. */
export const PASSED = `${COMMON}
local seq, delivery = unpack(ARGV)
if get('delivery:' .. seq) ~= delivery then return 0 end
remove('passing', seq)
return 1
`;

/** KEYS session, taken. ARGV "rank=incarnation,...". Sequences of what is consumed, kept by nobody, and not taken by one of them. */
export const LOST = `${COMMON}
local takers = {}
for rank, incarnation in string.gmatch(ARGV[1], '([^=,]+)=([^=,]*)') do takers['/' .. rank] = incarnation end
local lost = {}
for seq = 0, tonumber(get('count') or '0') - 1 do
  if get('state:' .. seq) == 'consumed' and get('spooled:' .. seq) ~= '1' then
    for rank, incarnation in pairs(takers) do
      if redis.call('HGET', KEYS[2], seq .. rank) ~= incarnation then
        lost[#lost + 1] = seq
        break
      end
    end
  end
end
return lost
`;

/** KEYS session. ARGV count. Nothing more is accepted, if nothing has been since the caller looked. */
export const FINISH = `${COMMON}
if get('finished') == '1' then return 1 end
if (get('count') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', session, 'finished', '1')
return 1
`;

/** KEYS session. ARGV retain. */
export const OPEN = `${COMMON}
redis.call('HSETNX', session, 'retain', ARGV[1])
if not get('touched') then touch() end
return 1
`;

/** KEYS session. */
export const TOUCH = `${COMMON}
if get('retain') then touch() end
return 1
`;
