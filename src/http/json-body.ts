import { isUtf8 } from 'node:buffer';
import { randomInt } from 'node:crypto';
import { type ErrorDetails, fail } from '../errors';
import { fieldName } from './text';

// Names are told apart by FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/, from where nobody outside can know, and its
// upper bits after Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4).
const FNV_PRIME = 0x01000193;
const SEED = randomInt(2 ** 32) | 0;
const GOLDEN = 0x9e3779b1;
/** Of the table of names, so that at its limit one name in ten falls on another. */
const NAME_BITS = 17;

/** How deep a body may nest. Nothing of the contract needs more than a few levels; observations may carry some. */
export const MAX_DEPTH = 64;

/** In a longer body it is not looked for which name is there twice, in characters: that costs more than the parsing. */
const MAX_SEARCHED = 64 * 1024;

// Of the space that JSON allows the last in the order of codes; nothing else of JSON is as low.
const SPACE = 0x20;
const QUOTE = 0x22;
const COMMA = 0x2c;
const COLON = 0x3a;
const MINUS = 0x2d;
const DOT = 0x2e;
const ZERO = 0x30;
const NINE = 0x39;
const BACKSLASH = 0x5c;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

/** A longer number may not be the one that was written. */
const EXACT_DIGITS = 15;

/** What is wrong with an item that is judged alone, by its path in the body. */
const faults = new WeakMap<object, ErrorDetails>();

/**
 * The text of an object's member that is kept as it was sent, if JSON.stringify would write it otherwise. It stands at the
 * object, where no text of a body can put a symbol: a map of objects costs ten times as much.
 */
const SOURCE = Symbol('source');

interface WithSource {
  [SOURCE]?: readonly [name: string, text: string];
}

/** What of a body is read. A member that is not named is stepped over, so it may hold any JSON. */
export type BodyShape = Readonly<Record<string, MemberShape>>;

/** What of a member of a body, or of each item if it is a list, is read. */
export interface MemberShape {
  /** Its members; without them it is gone through as a whole. */
  readonly members?: BodyShape;
  /** Its items are judged alone: one that is wrong does not make the others wrong. The longest list that is taken. */
  readonly judgedAlone?: number;
  /** It is kept as it was sent: {@link textOfMember} writes it. */
  readonly asSent?: true;
}

const WHOLE: MemberShape = {};

/**
 * How many values a body may hold. Ten thousand tasks come to half of it, and so does the longest report that probes send;
 * a body of nothing but brackets would have millions, at a hundred times the processor time and memory of its bytes.
 */
export const MAX_VALUES = 300_000;

/**
 * About how many different names the members of a body may have: a parser keeps each in a table, which costs more than the
 * values. Probes send a few dozen.
 */
export const MAX_NAMES = 20_000;

/** What a parsed value takes of the memory, in bytes: measured 20 to 100, by what it is. */
export const VALUE_BYTES = 64;

/**
 * Counts the values of a JSON text before it is parsed. An empty list or object counts as one that holds a value; a text that
 * is not JSON has any number.
 * @throws ERR_VALIDATION there are more than {@link MAX_VALUES}, or more names than {@link MAX_NAMES}
 */
export function countValues(body: Buffer): number {
  // The shortest member with a name of its own takes more than five bytes.
  const names = body.length > 5 * MAX_NAMES ? new NameCount() : undefined;
  let values = 1;
  // The string before, which a colon makes a name.
  let [start, end] = [0, 0];
  for (let at = 0; at < body.length; at++) {
    const code = body[at];
    if (code === QUOTE) {
      start = ++at;
      while (at < body.length && body[at] !== QUOTE) at += body[at] === BACKSLASH ? 2 : 1;
      end = at;
    } else if (code === COLON) {
      names?.add(body, start, end);
      // A text that is not JSON may have any number of colons, which must not read the name again and again.
      start = end;
    } else if (code === COMMA || code === OPEN_LIST || code === OPEN_OBJECT) values++;
  }
  const [most, of] = values > MAX_VALUES ? [MAX_VALUES, 'values'] : [MAX_NAMES, 'different names'];
  if (values > MAX_VALUES || (names && names.count > MAX_NAMES))
    throw fail('ERR_VALIDATION', { body: `must not hold more than ${most} ${of}` });
  return values;
}

/** Counts different names by their hashes: a few of them fall together, so that it is a little less. Numbers count each time. */
class NameCount {
  count = 0;
  private readonly seen = new Uint8Array(2 ** (NAME_BITS - 3));

  /** Counts the bytes from `start` to `end` as a name. */
  add(body: Buffer, start: number, end: number): void {
    // An object keeps names that are numbers in a table of its own, which costs as much as one of new names.
    if (isDigit(body[start] as number)) {
      this.count++;
      return;
    }
    let hash = SEED;
    for (let at = start; at < end; at++) hash = Math.imul(hash ^ (body[at] as number), FNV_PRIME);
    const bit = Math.imul(hash, GOLDEN) >>> (32 - NAME_BITS);
    const mask = 1 << (bit & 7);
    if ((this.seen[bit >> 3] as number) & mask) return;
    this.seen[bit >> 3] |= mask;
    this.count++;
  }
}

/**
 * Reads a JSON body, deciding once for the whole program what `JSON.parse` leaves open: keys that are there twice, deep
 * nesting and numbers that are not finite are refused. Texts are taken as they are, `\u0000` and lone surrogates included,
 * and any key is a member of its own, `__proto__` too: each field's own check says what it takes.
 * @param shape what of it is read; without one it is all. {@link faultOf} tells what is wrong with an item judged alone
 * @throws ERR_VALIDATION naming the field
 */
export function parseJsonBody(body: Buffer, shape?: BodyShape): unknown {
  if (body.length === 0) throw fail('ERR_VALIDATION', { body: 'must not be empty' });
  if (!isUtf8(body)) throw fail('ERR_VALIDATION', { body: 'must be UTF-8' });
  const text = body.toString('utf8');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw fail('ERR_VALIDATION', { body: 'must be JSON' });
  }
  new BodyInspection(text).inspect(value, shape);
  return value;
}

/** What the parser found wrong with an item of a list whose items are judged alone; undefined if nothing. */
export function faultOf(item: object): ErrorDetails | undefined {
  return faults.get(item);
}

/**
 * Writes the member of an item that is kept as it was sent: numbers with the digits that they had (`-0.0`, `1e308`), texts
 * with their escapes. The result is well-formed Unicode without `\u0000`, so that any database can keep it.
 */
export function textOfMember(holder: object, name: string): string {
  const [kept, text] = (holder as WithSource)[SOURCE] ?? [];
  return text !== undefined && kept === name
    ? compact(text)
    : JSON.stringify((holder as Record<string, unknown>)[name]);
}

/** JSON without the space between its parts, and with its strings as JSON.stringify writes them. */
function compact(json: string): string {
  const parts: string[] = [];
  let from = 0;
  for (let at = 0; at < json.length; ) {
    const start = at;
    const code = json.charCodeAt(at);
    let instead = '';
    if (code === QUOTE) {
      at = endOfString(json, at);
      const written = json.slice(start, at);
      if (!written.includes('\\')) continue;
      instead = JSON.stringify(JSON.parse(written));
    } else {
      at++;
      if (code > SPACE) continue;
    }
    parts.push(json.slice(from, start), instead);
    from = at;
  }
  return parts.join('') + json.slice(from);
}

/** Where the string of a JSON text ends that begins with this quotation mark. */
function endOfString(json: string, start: number): number {
  let at = start + 1;
  for (; json.charCodeAt(at) !== QUOTE; at++) if (json.charCodeAt(at) === BACKSLASH) at++;
  return at + 1;
}

/**
 * Goes through a text that is known to be JSON, beside the value that it was parsed to: the value alone does not tell which
 * keys were there twice or how a number was written.
 */
class BodyInspection {
  private at = 0;
  private readonly path: (string | number)[] = [];
  /** While an item that is judged alone is gone through; `item` if it is an object or a list. */
  private isInItem = false;
  private item: object | undefined;
  /** Whether JSON.stringify would write otherwise what is kept as it was sent, while that is gone through. */
  private isRewritten: boolean | undefined;

  constructor(private readonly text: string) {}

  inspect(value: unknown, members: BodyShape | undefined): void {
    this.value(value, members ? { members } : WHOLE);
  }

  /** @param holder the object whose member the value is */
  private value(value: unknown, shape: MemberShape, holder?: object): void {
    this.skipSpace();
    const start = this.at;
    const isKept = shape.asSent === true && holder !== undefined;
    if (isKept) this.isRewritten = false;
    const code = this.text.charCodeAt(start);
    if (code === MINUS || isDigit(code)) this.number(value);
    else if (code === OPEN_OBJECT || code === OPEN_LIST) this.container(value, shape, code === OPEN_LIST);
    else this.skipValue();
    if (!isKept) return;
    if (this.isRewritten)
      (holder as WithSource)[SOURCE] = [this.path.at(-1) as string, this.text.slice(start, this.at)];
    this.isRewritten = undefined;
  }

  private number(value: unknown): void {
    const start = this.at;
    const isPlain = this.skipNumber();
    const isShort = this.at - start <= EXACT_DIGITS;
    if (isPlain && isShort && !(this.at - start === 2 && this.text.startsWith('-0', start))) return;
    if (!Number.isFinite(value)) {
      // Of a key that is there twice the value is another; that is told by its object.
      if (typeof value === 'number') this.refuse(this.path, 'must be a number that can be represented');
    } else if (this.isRewritten === false)
      this.isRewritten = this.text.slice(start, this.at) !== JSON.stringify(value);
  }

  private container(value: unknown, shape: MemberShape, isList: boolean): void {
    // Of a key that is there twice the value is another; that is told by its object.
    if (typeof value !== 'object' || value === null || Array.isArray(value) !== isList) {
      this.skipValue();
      return;
    }
    if (this.path.length >= MAX_DEPTH) {
      this.refuse([], `must not nest deeper than ${MAX_DEPTH}`);
      this.skipValue();
      return;
    }
    if (!isList) this.object(value as Record<string, unknown>, shape.members);
    else if (shape.judgedAlone === undefined) this.list(value as unknown[], shape);
    else this.items(value as unknown[], shape, shape.judgedAlone);
  }

  /** Goes through a list whose items are judged alone. */
  private items(list: readonly unknown[], { members }: MemberShape, most: number): void {
    // The field's own check refuses it.
    if (list.length > most) this.skipValue();
    else this.list(list, members ? { members } : WHOLE, true);
  }

  private list(list: readonly unknown[], shape: MemberShape, isJudged = false): void {
    const depth = this.path.length;
    this.path.push(0);
    for (let i = 0; this.hasMember(i, CLOSE_LIST); i++) {
      this.path[depth] = i;
      const value = list[i];
      if (isJudged) this.enter(value);
      this.value(value, shape);
    }
    if (isJudged) this.isInItem = false;
    this.path.pop();
  }

  private enter(item: unknown): void {
    this.isInItem = true;
    this.item = typeof item === 'object' && item !== null ? item : undefined;
  }

  private object(object: Record<string, unknown>, members: BodyShape | undefined): void {
    const depth = this.path.length;
    const start = this.at;
    let read = 0;
    this.path.push('');
    for (let i = 0; this.hasMember(i, CLOSE_OBJECT); i++) {
      const name = this.name();
      if (!isNamed(name, members)) {
        this.skipSpace();
        this.skipValue();
        continue;
      }
      read++;
      this.path[depth] = name;
      this.value(object[name], members?.[name] ?? WHOLE, object);
    }
    this.path.pop();
    if (read !== countNamed(object, members)) this.refuseDuplicate(start, members);
  }

  /** Steps over the opening bracket or the comma before a container's member, or over its closing bracket. */
  private hasMember(index: number, close: number): boolean {
    if (index === 0) this.at++;
    this.skipSpace();
    if (this.text.charCodeAt(this.at) === close) {
      this.at++;
      return false;
    }
    if (index > 0) this.at++;
    return true;
  }

  /** Reads a member's name and steps over its colon. */
  private name(): string {
    this.skipSpace();
    const start = this.at;
    this.at = endOfString(this.text, this.at);
    const written = this.text.slice(start + 1, this.at - 1);
    this.skipSpace();
    this.at++;
    const name = written.includes('\\') ? (JSON.parse(`"${written}"`) as string) : written;
    // Names that are integers come first in JavaScript's objects.
    if (this.isRewritten === false && isDigit(name.charCodeAt(0))) this.isRewritten = true;
    return name;
  }

  private skipSpace(): void {
    while (this.text.charCodeAt(this.at) <= SPACE) this.at++;
  }

  /** Steps over a value of any depth that begins here. */
  private skipValue(): void {
    const code = this.text.charCodeAt(this.at);
    if (code === QUOTE) this.at = endOfString(this.text, this.at);
    else if (code === MINUS || isDigit(code)) this.skipNumber();
    else if (code === OPEN_OBJECT || code === OPEN_LIST) this.skipContainer();
    // true and null have four letters, false has five.
    else this.at += code === 0x66 ? 5 : 4;
  }

  /** @returns whether it has nothing but digits and a sign before them */
  private skipNumber(): boolean {
    let isPlain = true;
    for (;;) {
      const code = this.text.charCodeAt(++this.at);
      if (isDigit(code)) continue;
      // What may stand in a number besides digits: . e E + -
      if (code !== DOT && code !== 0x65 && code !== 0x45 && code !== 0x2b && code !== MINUS) return isPlain;
      isPlain = false;
    }
  }

  private skipContainer(): void {
    for (let depth = 0; ; ) {
      const code = this.text.charCodeAt(this.at);
      if (code === QUOTE) {
        this.at = endOfString(this.text, this.at);
        continue;
      }
      this.at++;
      if (code === OPEN_OBJECT || code === OPEN_LIST) depth++;
      else if ((code === CLOSE_OBJECT || code === CLOSE_LIST) && --depth === 0) return;
    }
  }

  /** Names the first key that is read and that the object which begins here has twice. */
  private refuseDuplicate(start: number, members: BodyShape | undefined): void {
    // An item keeps the first of its faults.
    if (this.isInItem && this.item && faults.has(this.item)) return;
    if (this.text.length > MAX_SEARCHED) {
      this.refuse(this.path, 'must not hold a name twice');
      return;
    }
    const end = this.at;
    const names = new Set<string>();
    this.at = start;
    for (let i = 0; this.hasMember(i, CLOSE_OBJECT); i++) {
      const name = this.name();
      if (names.has(name)) {
        this.refuse([...this.path, name], 'must not be there twice');
        break;
      }
      if (isNamed(name, members)) names.add(name);
      this.skipSpace();
      this.skipValue();
    }
    this.at = end;
  }

  /** @throws ERR_VALIDATION unless the fault is in an item that is judged alone: that keeps the first of its faults */
  private refuse(path: readonly (string | number)[], problem: string): void {
    if (!this.isInItem) throw fail('ERR_VALIDATION', { [nameOf(path)]: problem });
    const field = nameOf(path.length === 0 ? this.path.slice(0, 2) : path);
    // An item that is no object is judged by that.
    if (this.item && !faults.has(this.item)) faults.set(this.item, { [field]: problem });
  }
}

const isDigit = (code: number): boolean => code >= ZERO && code <= NINE;

const isNamed = (name: string, members: BodyShape | undefined): boolean =>
  members === undefined || Object.hasOwn(members, name);

/** How many members of an object are read. */
function countNamed(object: object, members: BodyShape | undefined): number {
  if (members === undefined) return Object.keys(object).length;
  let count = 0;
  for (const name in members) if (Object.hasOwn(object, name)) count++;
  return count;
}

/** A path as details name it; the empty one is the body. */
function nameOf(path: readonly (string | number)[]): string {
  return path.length === 0 ? 'body' : fieldName(path.join('.'));
}
