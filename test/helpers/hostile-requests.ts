import type { Json } from './api';
import { type ApiDocument, jsonOf } from './api-document';
import { type Credentials, credentialsOf } from './harness';

/** A request as it goes out: the body as bytes or text, whatever it was made from. */
export interface HostileRequest {
  /** The operation's name in the document. */
  name: string;
  method: string;
  path: string;
  headers: Record<string, string>;
  body: string | Buffer | undefined;
  /** Whether its credentials were left as they are. */
  trusted: boolean;
}

/** Numbers that follow from a seed: mulberry32. */
export class Chance {
  constructor(private state: number) {}

  next(): number {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.state ^ (this.state >>> 15), 1 | this.state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  }

  /** An integer from `min` to `max`. */
  int(min: number, max: number): number {
    return min + Math.floor(this.next() * (max - min + 1));
  }

  pick<T>(list: readonly T[]): T {
    return list[this.int(0, list.length - 1)] as T;
  }

  /** True with this probability. */
  is(probability: number): boolean {
    return this.next() < probability;
  }
}

const TEXTS = [
  '',
  ' ',
  '\0',
  'a\0b',
  '\n',
  '\u0007\u001b[31m',
  '\u007f\u0085\u2028\u2029',
  '\ud800',
  '\udc00x',
  '\ufeff',
  '\ufffe\uffff',
  '\u202egnp.exe',
  '\u200b\u200d\u2060',
  'Z\u0351\u036b\u0343\u032a\u0302',
  '\u{1f468}\u200d\u{1f469}\u200d\u{1f467}\u200d\u{1f466}',
  '\u0130\u0131\u017f\u212a',
  '\ufdfd',
  '0',
  '-1',
  '1e309',
  'NaN',
  'null',
  'true',
  '[]',
  '{}',
  "'; DROP TABLE tasks; --",
  '" OR ""="',
  '%s%n%x',
  '%00',
  '../../../../etc/passwd',
  // biome-ignore lint/suspicious/noTemplateCurlyInString: it is meant to look like one.
  '${jndi:ldap://a}',
  '{{7*7}}',
  '<script>alert(1)</script>',
  'http://[::1',
  'http://a:99999/',
  'https://user:pass@a/',
  'http://\u2488.com/',
  'dcpa_',
  '2026-02-30T00:00:00Z',
  '2026-01-01T24:00:00Z',
  '2026-12-31T23:59:60Z',
  '0000-01-01T00:00:00Z',
  '9999-12-31T23:59:59.999999999+23:59',
  '+275760-09-13T00:00:00Z',
  '2026-01-01',
];
const NUMBERS = [
  0,
  -0,
  1,
  -1,
  0.5,
  1.5,
  -1e-7,
  5e-324,
  1.7976931348623157e308,
  2 ** 31 - 1,
  2 ** 31,
  -(2 ** 31) - 1,
  2 ** 32,
  2 ** 53 - 1,
  2 ** 53,
  -(2 ** 53),
  2 ** 63,
  2 ** 64,
  1e21,
  8.64e15,
  8.64e15 + 1,
];
const NAMES = [
  '__proto__',
  'constructor',
  'prototype',
  'toString',
  'hasOwnProperty',
  'valueOf',
  'toJSON',
  'then',
  'length',
  '$where',
  '',
  ' ',
  '0',
  '-1',
  'a.b',
  'a[b]',
  '\0',
  '\ud800',
  'id',
  'state',
  'agent_id',
  'AGENT_ID',
  'agent\u200b_id',
];
/** What JSON.stringify does not write. */
const RAW_VALUES = [
  'NaN',
  'Infinity',
  '-Infinity',
  'undefined',
  '1e999',
  '-1e999',
  '-0',
  '01',
  '+1',
  '1.',
  '.5',
  '0x10',
  '1_000',
  '9007199254740993',
  '123456789012345678901234567890',
  `1${'0'.repeat(400)}`,
  `0.${'1'.repeat(2_000)}`,
  '"\\u0000"',
  '"\\ud800"',
  '"\\x41"',
  '"\n"',
  "'a'",
  '{"__proto__":{"polluted":true}}',
  '{"constructor":{"prototype":{"polluted":true}}}',
  '{"a":1,"a":2}',
  '{"a":1,"\\u0061":2}',
  '/**/1',
  '[1,]',
];
const HEADERS: readonly (readonly [string, string])[] = [
  ['content-type', 'text/plain'],
  ['content-type', 'application/json; charset=utf-16'],
  ['content-type', 'application/json; charset="'],
  ['content-type', 'application/merge-patch+json'],
  ['content-type', ';'],
  ['content-type', 'application/json, text/html'],
  ['content-encoding', 'gzip'],
  ['accept', 'text/html;q=0'],
  ['accept-encoding', '*;q=0'],
  ['origin', 'null'],
  ['cookie', `a=${'b'.repeat(4_000)}`],
  ['range', 'bytes=-1'],
  ['if-match', '*'],
  ['if-none-match', '*'],
  ['if-none-match', 'W/"'],
  ['if-none-match', `"${'a'.repeat(8_000)}`],
  ['if-none-match', '"a", '.repeat(500)],
  ['if-modified-since', 'yesterday'],
  ['x-forwarded-for', '1.2.3.4, \u00ff, ,'],
  ['x-forwarded-host', '\u00e9'],
  ['x-http-method-override', 'DELETE'],
  ['x-request-id', '\u00ff'.repeat(200)],
  ['x-request-id', '%s%n'],
  ['expect', '100-continue'],
  ['host', ''],
  ['host', '\u00ff:99999'],
  ['te', 'trailers'],
  ['upgrade', 'websocket'],
];
const HEADER_VALUES = [
  '',
  ' ',
  '0',
  '-1',
  '1, 2',
  '1e0',
  '9007199254740992',
  '\u00e9\u00ff',
  'a\tb',
  '\u00a0',
  "'--",
  '__proto__',
  'Bearer',
  'Bearer  ',
  'bearer a b',
  'Basic YTpi',
  `Bearer ${'a'.repeat(4_000)}`,
  `dcpa_${'0'.repeat(49)}`,
  `dcpo_${'Z'.repeat(49)}`,
];
const QUERIES = [
  '%zz',
  '%00',
  '%ff=%fe',
  'limit=%00',
  'limit=1&limit=2',
  'limit[]=1',
  'limit[a]=1',
  '__proto__=1',
  '__proto__[a]=1',
  'constructor=1',
  'toString',
  '=',
  '&&&',
  '?',
  '#',
  'limit=+1',
  'limit=1e1',
  'limit=0x1',
  'cursor=',
  'cursor=-1',
  'cursor=9007199254740993',
  'cursor=99999999999999999999-1',
  `cursor=${'9'.repeat(4_000)}`,
  'a=1;b=2',
];
const PATH_VALUES = [
  '0',
  '-1',
  '007',
  '1.0',
  '1e1',
  '0x1',
  '9007199254740991',
  '9007199254740992',
  '99999999999999999999',
  '%00',
  '%2e%2e',
  '..%2f',
  '%zz',
  '%ff',
  '%F0%9F%92%A9',
  '\u00ff',
  'a%20b',
  '__proto__',
  'constructor',
  'null',
  ':id',
  '*',
  "'",
  '%ef%bb%bf7',
  '%D9%A7',
];

/** How many ids a path draws from: low ones, which belong to nobody that a test relies on. */
export const THROWAWAY_IDS = 40;
/** A claim that finds nothing may hold up nobody for long. */
const LONGEST_WAIT_MS = 5;

/** Makes requests of every operation of a document: what its schemas allow, and that corrupted in every way. */
export class HostileRequests {
  private readonly names: string[];
  /** What was answered lately, by the name of its field. */
  private readonly seen = new Map<string, unknown[]>();

  constructor(
    private readonly api: ApiDocument,
    private readonly adminToken: string,
    public agent: Credentials,
  ) {
    this.names = [...api.operations.keys()];
  }

  /** Takes in an answer: what it names can be asked for. */
  learn(value: unknown, depth = 0): void {
    if (typeof value !== 'object' || value === null || depth > 4) return;
    for (const [name, part] of Object.entries(value).slice(0, 20)) {
      if (typeof part === 'object') this.learn(part, depth + 1);
      else {
        const list = this.seen.get(name) ?? [];
        this.seen.set(name, [part, ...list.slice(0, 19)]);
      }
    }
  }

  /** The request of a number, the operations in turn. */
  make(chance: Chance, number: number): HostileRequest {
    const name = this.names[number % this.names.length] as string;
    const operation = this.api.operations.get(name);
    const [method, template] = name.split(' ') as [string, string];
    const headers: Record<string, string> = {};
    const request: HostileRequest = { name, method, path: template, headers, body: undefined, trusted: true };
    for (const part of operation.security?.[0] ? Object.keys(operation.security[0]) : []) {
      if (part === 'operator') headers.authorization = `Bearer ${this.adminToken}`;
      else Object.assign(headers, credentialsOf(this.agent));
    }
    const query: string[] = [];
    for (const parameter of operation.parameters ?? []) {
      const hostile = chance.is(0.2);
      const value = () => String(this.valid(chance, parameter.schema, parameter.name));
      if (parameter.in === 'path') {
        const good = parameter.schema.type === 'integer' ? String(chance.int(2, THROWAWAY_IDS)) : value();
        request.path = request.path.replace(
          `{${parameter.name}}`,
          hostile ? chance.pick(PATH_VALUES) : encodeURIComponent(good),
        );
      } else if (chance.is(0.3)) {
        if (parameter.in === 'query') {
          const text = hostile ? chance.pick(TEXTS).toWellFormed() : value();
          query.push(`${encodeURIComponent(parameter.name)}=${encodeURIComponent(text)}`);
        } else if (parameter.in === 'header' && !(parameter.name.toLowerCase() in headers)) {
          headers[parameter.name.toLowerCase()] = hostile
            ? chance.pick(HEADER_VALUES)
            : `key-${chance.int(1, 30)}`;
        }
      }
    }
    if (chance.is(0.1)) query.push(chance.pick(QUERIES));
    if (query.length > 0) request.path += `?${query.join('&')}`;

    const schema = jsonOf(operation.requestBody?.content)?.schema;
    if (schema ? chance.is(0.99) : chance.is(0.05)) {
      headers['content-type'] = 'application/json';
      const content = jsonOf(operation.requestBody?.content) ?? { schema: {} };
      const good = chance.is(0.4)
        ? structuredClone(content.example ?? this.api.exampleOf(content.schema, name, []))
        : this.valid(chance, content.schema, '');
      if (this.isObject(good) && 'agent_id' in good) good.agent_id = this.agent.agent_id;
      request.body = this.write(chance, good);
    }
    if (chance.is(0.1)) this.spoilHeaders(chance, request);
    return request;
  }

  private spoilHeaders(chance: Chance, request: HostileRequest): void {
    const names = Object.keys(request.headers);
    if (chance.is(0.5) || names.length === 0) {
      const [name, value] = chance.pick(HEADERS);
      request.headers[name] = value;
    } else {
      const name = chance.pick(names);
      if (/^(authorization|x-agent-(id|token))$/.test(name)) request.trusted = false;
      request.headers[name] = chance.pick(HEADER_VALUES);
    }
  }

  /** A value that a schema allows, as far as its own words say. */
  private valid(chance: Chance, given: Json, name: string): unknown {
    const schema = this.api.deref(given) ?? {};
    if (schema.nullable && chance.is(0.1)) return null;
    const known = this.seen.get(name.replace(/^lease_ids$/, 'lease_id'));
    if (known && schema.type !== 'array' && schema.type !== 'object' && chance.is(0.6))
      return chance.pick(known);
    if (schema.enum) return chance.pick(schema.enum);
    if (schema.example !== undefined && chance.is(0.4)) return structuredClone(schema.example);
    const variants = schema.allOf ?? schema.anyOf ?? schema.oneOf;
    if (variants) return this.valid(chance, chance.pick(variants), name);
    switch (schema.type) {
      case 'object':
        return this.validObject(chance, schema);
      case 'array':
        return Array.from({ length: chance.int(schema.minItems ?? 0, (schema.minItems ?? 0) + 3) }, () =>
          this.valid(chance, schema.items, name),
        );
      case 'integer':
      case 'number':
        return chance.int(schema.minimum ?? 1, Math.min(schema.maximum ?? 1_000, 100_000));
      case 'boolean':
        return chance.is(0.5);
      case 'string':
        if (schema.format === 'date-time')
          return new Date(Date.now() + chance.int(-1_000_000, 200_000)).toISOString();
        return schema.example ?? `text-${chance.int(1, 1_000)}`;
      default:
        return schema.example ?? chance.pick(NUMBERS);
    }
  }

  private validObject(chance: Chance, schema: Json): Record<string, unknown> {
    const value: Record<string, unknown> = {};
    for (const [name, property] of Object.entries(schema.properties ?? {}))
      if (schema.required?.includes(name) || chance.is(0.4)) value[name] = this.valid(chance, property, name);
    if (typeof schema.additionalProperties === 'object') {
      for (const name of Object.keys(schema.example ?? { a: 1 }))
        value[name] = this.valid(chance, schema.additionalProperties, name);
    }
    // A part may repeat what names its form; the whole goes by that then.
    for (const part of Object.values(value)) {
      if (this.isObject(part) && typeof part.kind === 'string' && 'kind' in value) value.kind = part.kind;
    }
    return value;
  }

  /** A body as text: as it is, or corrupted before it is written, or after. */
  private write(chance: Chance, good: unknown): string | Buffer {
    let value = good;
    if (chance.is(0.6)) for (let n = chance.int(1, 2); n > 0; n--) value = this.spoil(chance, value);
    this.shortenWaits(value);
    const text = JSON.stringify(value) ?? '';
    return chance.is(0.15) ? this.corruptText(chance, text) : text;
  }

  /** Changes one place of a value. */
  private spoil(chance: Chance, root: unknown): unknown {
    const places: [holder: Json, key: string | number][] = [];
    const walk = (value: Json): void => {
      if (typeof value !== 'object' || value === null) return;
      for (const key of Array.isArray(value) ? value.keys() : Object.keys(value)) {
        if (places.length > 200) return;
        places.push([value, key]);
        walk(value[key]);
      }
    };
    walk(root);
    if (places.length === 0 || chance.is(0.03)) return this.hostile(chance);
    const [holder, key] = chance.pick(places);
    const there = holder[key];
    switch (chance.int(0, 7)) {
      case 0:
        if (Array.isArray(holder)) holder.splice(key as number, 1);
        else delete holder[key];
        break;
      case 1:
        holder[key] = chance.is(0.5) ? [there] : { [String(key)]: there };
        break;
      case 2:
        if (Array.isArray(holder)) break;
        // As its own property: an assignment would set the prototype.
        Object.defineProperty(holder, chance.pick(NAMES), {
          value: this.hostile(chance),
          enumerable: true,
          configurable: true,
          writable: true,
        });
        break;
      case 3:
        if (Array.isArray(there) && there.length > 0)
          holder[key] = Array(chance.pick([2, 101, chance.is(0.1) ? 1_001 : 3])).fill(there[0]);
        else holder[key] = chance.pick(NUMBERS);
        break;
      default:
        holder[key] = this.hostile(chance);
    }
    return root;
  }

  private hostile(chance: Chance): unknown {
    switch (chance.int(0, 9)) {
      case 0:
        return null;
      case 1:
        return chance.is(0.5);
      case 2:
        return chance.pick([[], {}, [[]], [{}], [null]]);
      case 3:
      case 4:
        return chance.pick(NUMBERS);
      case 5: {
        let deep: unknown = chance.pick(TEXTS);
        for (let n = chance.pick([10, 60, 70, 500]); n > 0; n--) deep = chance.is(0.5) ? [deep] : { a: deep };
        return deep;
      }
      case 6:
        return chance.pick(TEXTS).repeat(chance.pick([2, 64, 256, chance.is(0.1) ? 5_000 : 3]));
      default:
        return chance.pick(TEXTS);
    }
  }

  private corruptText(chance: Chance, text: string): string | Buffer {
    switch (chance.int(0, 8)) {
      case 0:
        return text.slice(0, chance.int(0, text.length));
      case 1:
        // The first member again.
        return text.replace(/^\{("[^"]*":)/, '{$1null,$1');
      case 2:
        return text + chance.pick(['x', '}', ']', '\0', ',', '{}', ' \n\t', '//', '\u2028']);
      case 3: {
        const bytes = Buffer.from(text);
        if (bytes.length > 0) bytes[chance.int(0, bytes.length - 1)] = chance.int(0, 255);
        return bytes;
      }
      case 4:
        return chance.pick([
          '\ufeff',
          `${' '.repeat(1_000)}`,
          '"text"',
          'null',
          '0',
          '[]',
          '[[[[[[[[',
          '{'.repeat(2_000),
          '['.repeat(chance.is(0.1) ? 200_000 : 5_000),
          `${'{"a":'.repeat(1_000)}1${'}'.repeat(1_000)}`,
        ]);
      case 5:
        return `\ufeff${text}`;
      default:
        // One value, of whatever kind, is written as JSON.stringify never would.
        return this.replaceOne(chance, text);
    }
  }

  private replaceOne(chance: Chance, text: string): string {
    const values = [
      ...text.matchAll(/(?<=[:[,])(?:"(?:[^"\\]|\\.)*"|-?\d[\d.e+-]*|null|true|false)(?=[,\]}])/g),
    ];
    if (values.length === 0) return chance.pick(RAW_VALUES);
    const { 0: value, index } = chance.pick(values);
    return text.slice(0, index) + chance.pick(RAW_VALUES) + text.slice(index + value.length);
  }

  private shortenWaits(value: unknown): void {
    if (this.isObject(value) && typeof value.wait_ms === 'number')
      value.wait_ms = Math.min(value.wait_ms, LONGEST_WAIT_MS);
  }

  private isObject(value: unknown): value is Record<string, unknown> {
    return typeof value === 'object' && value !== null && !Array.isArray(value);
  }
}
