import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { domainToUnicode } from 'node:url';
import fc from 'fast-check';
import { DnsKind, HttpKind, PingKind, TcpKind, TraceKind } from './kinds';
import {
  canonicalHost,
  joinHostPort,
  parseDnsServer,
  parseHostPort,
  parseWebUrl,
  storedDnsServer,
  storedHost,
} from './targets';
import type { TaskKindHandler } from './task-kinds';

const cases = (name: string) => JSON.parse(readFileSync(join(__dirname, '../../test/cases', name), 'utf8'));
const targetCases: { kind: string; canonical: string; specs: object[]; not_the_same_as?: string }[] =
  cases('targets.json');
const urlCases: { refused: string[]; taken: Record<string, string> } = cases('urls.json');

const KINDS: Record<string, unknown> = {
  dns: new DnsKind(),
  http: new HttpKind(),
  ping: new PingKind(),
  tcp: new TcpKind(),
  trace: new TraceKind(),
};
const kindOf = (name: string) => KINDS[name] as Required<TaskKindHandler>;

/** A label of a name in lower case that is no number and no Punycode. */
const label = fc.stringMatching(/^[a-z][a-z0-9_-]{0,14}[a-z0-9]$/).filter((text) => !text.startsWith('xn--'));
const name = fc.array(label, { minLength: 1, maxLength: 4 }).map((labels) => labels.join('.'));
const unicodeName = fc
  .tuple(fc.array(fc.constantFrom(...'äöüéñßøčжяλ字'), { minLength: 1, maxLength: 8 }), label)
  .map(([letters, tld]) => `a${letters.join('')}.${tld}`);
const ipv4 = fc.ipV4().filter((text) => /^\d+\.\d+\.\d+\.\d+$/.test(text));
const ipv6 = fc.ipV6().filter((text) => !text.includes('%'));
const port = fc.integer({ min: 1, max: 65_535 });
/** The same name with some letters in capitals. */
const shout = (text: string, which: readonly boolean[]): string =>
  [...text].map((letter, i) => (which[i % which.length] ? letter.toUpperCase() : letter)).join('');
const which = fc.array(fc.boolean(), { minLength: 1, maxLength: 8 });
/** The same name in capitals, but for ß: in capitals it is SS, and a name with ss is another one. */
const inCapitals = (text: string): string =>
  [...text].map((letter) => (letter === 'ß' ? letter : letter.toUpperCase())).join('');

describe('the target of a kind', () => {
  it.each(targetCases)(
    '$kind: $canonical is one for all its spellings',
    ({ kind, canonical, specs, ...more }) => {
      const handler = kindOf(kind);
      expect(specs.map((spec) => handler.target(spec))).toEqual(specs.map(() => canonical));
      expect(handler.parseTarget(canonical)).toBe(canonical);
      if ('not_the_same_as' in more) expect(canonical).not.toBe(more.not_the_same_as);
      // What is stored for the agents leads to the same.
      for (const spec of specs) {
        expect(handler.target({ ...spec, ...handler.canonicalFields(spec) })).toBe(canonical);
      }
    },
  );

  it.each([
    ['dns', { query: 'a' }, 'resolver'],
    ['dns', { query: 'a', server: null }, 'resolver'],
    ['dns', { query: 'a', server: 'resolver' }, 'resolver:53'],
    ['dns', { query: 'a', server: 'NS.example.' }, 'ns.example:53'],
    ['dns', { query: 'a', server: '[2001:DB8::53]:5353' }, '[2001:db8::53]:5353'],
    ['http', { url: 'http://[::ffff:192.0.2.1]:8080/' }, '192.0.2.1:8080'],
    ['http', { url: 'https://shop.example./' }, 'shop.example:443'],
    ['ping', { host: '::ffff:192.0.2.1' }, '192.0.2.1'],
    ['tcp', { host: 'Shop.Example.', port: 1 }, 'shop.example:1'],
  ])('%s %j is %s', (kind, spec, target) => {
    expect(kindOf(kind).target(spec)).toBe(target);
    expect(kindOf(kind).parseTarget(target)).toBe(target);
  });

  it.each([
    ['http', 'shop.example'],
    ['http', 'https://shop.example/'],
    ['http', 'shop.example:0'],
    ['http', 'shop.example:65536'],
    ['tcp', '2001:db8::7'],
    ['tcp', '2001:db8::7:443'],
    ['tcp', 'shop.example:'],
    ['tcp', ':443'],
    ['dns', '192.0.2.53:port'],
    ['ping', 'probe.example:7'],
    ['ping', '*'],
    ['trace', ''],
    ['trace', ' probe.example'],
  ])('%s can not be %j', (kind, text) => {
    expect(kindOf(kind).parseTarget(text)).toBeUndefined();
  });

  it('is what an operator who writes it gets, for any host and port', () => {
    fc.assert(
      fc.property(fc.oneof(name, unicodeName, ipv4, ipv6), port, (host, number) => {
        for (const [kind, spec] of [
          ['ping', { host }],
          ['trace', { host }],
          ['tcp', { host, port: number }],
          ['dns', { query: 'a', server: host.includes(':') ? `[${host}]:${number}` : `${host}:${number}` }],
          ['http', { url: `http://${host.includes(':') ? `[${host}]` : host}:${number}/` }],
        ] as const) {
          const target = kindOf(kind).target(spec);
          expect(kindOf(kind).parseTarget(target)).toBe(target);
        }
      }),
      { numRuns: 300 },
    );
  });
});

describe('a host', () => {
  it('is one in capitals, with a final dot, in brackets', () => {
    fc.assert(
      fc.property(name, which, (text, capitals) => {
        for (const spelling of [text, shout(text, capitals), `${text}.`])
          expect(canonicalHost(spelling)).toBe(text);
      }),
    );
    fc.assert(
      fc.property(unicodeName, (text) => {
        const ascii = canonicalHost(text) as string;
        expect(ascii).toMatch(/^xn--/);
        for (const spelling of [
          text.normalize('NFD'),
          inCapitals(text),
          domainToUnicode(ascii),
          ascii.toUpperCase(),
        ])
          expect(canonicalHost(spelling)).toBe(ascii);
      }),
      { examples: [['aä.assa'], ['aß.assa']] },
    );
    fc.assert(
      fc.property(ipv6, which, (text, capitals) => {
        const address = canonicalHost(text) as string;
        expect([text, address]).toEqual([text, expect.stringMatching(/^[0-9a-f:]+$|^[0-9.]+$/)]);
        for (const spelling of [`[${text}]`, shout(text, capitals), address])
          expect(canonicalHost(spelling)).toBe(address);
        // As the URL standard compresses it, but for mapped addresses.
        if (address.includes(':')) expect(new URL(`http://[${text}]/`).hostname).toBe(`[${address}]`);
      }),
    );
  });

  it('has a canonical form that is its own, whatever was sent', () => {
    fc.assert(
      fc.property(fc.oneof(fc.string({ unit: 'binary' }), fc.webAuthority(), fc.string()), (text) => {
        const host = canonicalHost(text);
        if (host === undefined) return;
        expect(canonicalHost(host)).toBe(host);
        expect(host).toMatch(/^(?!-)[-_.:a-z0-9]+$/);
        expect(canonicalHost(storedHost(text))).toBe(host);
        expect(parseDnsServer(storedDnsServer(text))).toEqual({ host, port: 53 });
        expect(parseDnsServer(storedDnsServer(`${text}:7`)) ?? parseDnsServer(`${text}:7`)).toEqual(
          parseDnsServer(`${text}:7`),
        );
      }),
      { numRuns: 1_000 },
    );
  });

  it.each([
    ...[
      '',
      '.',
      '..',
      'a..b',
      '.a',
      '-h',
      '-f.example',
      'a b',
      ' a',
      'a ',
      'a\tb',
      'a\nb',
      'a\0b',
      'a/b',
      'a\\b',
    ],
    ...['a?b', 'a#b', 'a@b', 'a%41', '*', 'a,b', 'h.example..', 'x'.repeat(256), `${'a.'.repeat(127)}aaa`],
    // Read as an address by some and as a name by others, or as two addresses.
    ...[
      '127.1',
      '0x7f.1',
      '0x7f000001',
      '2130706433',
      '1.2.3',
      '0177.0.0.1',
      '192.0.2.01',
      '1.2.3.256',
      'foo.123',
      '１９２.0.2.1',
    ],
    ...[
      'fe80::1%eth0',
      '[fe80::1%25eth0]',
      '[192.0.2.1]',
      '[h.example]',
      '[::1',
      '::1]',
      ':::',
      '1:2',
      '::1.2.3',
      '2001:db8::7:443:1:2:3:4:5',
    ],
    // Not seen.
    ...['a\u00adb', 'a\u200bb', 'a\u202eb', 'a\ud800b', 'a\u2028b'],
  ])('is not %j', (text) => {
    expect(canonicalHost(text)).toBeUndefined();
    expect(parseDnsServer(text)).toBeUndefined();
    expect(parseHostPort(`${text}:80`)).toBeUndefined();
  });

  it.each([
    ['192.0.2.1.', '192.0.2.1'],
    ['_dmarc.example', '_dmarc.example'],
    ['a-.example', 'a-.example'],
    [`${'a'.repeat(63)}.example`, `${'a'.repeat(63)}.example`],
    ['example。com', 'example.com'],
    ['::', '::'],
    ['64:ff9b::192.0.2.1', '64:ff9b::c000:201'],
    ['7.example', '7.example'],
    ['h.0x7', undefined],
  ])('%j is %j', (text, host) => {
    expect(canonicalHost(text)).toBe(host);
  });

  it.each([
    ['Probe.Example.', 'Probe.Example.'],
    ['[2001:DB8::7]', '2001:DB8::7'],
    ['MÜNCHEN.example', 'xn--mnchen-3ya.example'],
    ['münchen.example.', 'xn--mnchen-3ya.example.'],
    ['münchen.example。', 'xn--mnchen-3ya.example.'],
    ['192.0.2.1', '192.0.2.1'],
  ])('%j is stored as %j', (text, stored) => {
    expect(storedHost(text)).toBe(stored);
  });

  it.each([
    ['192.0.2.53', '192.0.2.53'],
    ['192.0.2.53:53', '192.0.2.53:53'],
    ['2001:DB8::53', '2001:DB8::53'],
    ['[2001:DB8::53]', '2001:DB8::53'],
    ['[2001:DB8::53]:5353', '[2001:DB8::53]:5353'],
    ['NS.example.:53', 'NS.example.:53'],
    ['münchen.example:5353', 'xn--mnchen-3ya.example:5353'],
  ])('as a DNS server, %j is stored as %j', (text, stored) => {
    expect(storedDnsServer(text)).toBe(stored);
  });

  it('and its port are read as they are written', () => {
    fc.assert(
      fc.property(fc.oneof(name, ipv4, ipv6), port, (text, number) => {
        const host = canonicalHost(text) as string;
        expect(parseHostPort(joinHostPort({ host, port: number }))).toEqual({ host, port: number });
      }),
    );
  });
});

describe('a URL', () => {
  const problem = (text: string) => {
    const parsed = parseWebUrl(text);
    return typeof parsed === 'string' ? parsed : undefined;
  };

  it.each(urlCases.refused)('%j is refused', (text) => {
    expect(problem(text)).toEqual(expect.any(String));
  });

  it.each(Object.entries(urlCases.taken))('%j is taken, as %j', (text, href) => {
    expect(parseWebUrl(text)).toMatchObject({ href });
    // What is stored can be sent again.
    expect(parseWebUrl(href)).toMatchObject({ href });
  });

  it.each([
    ['http://@good.example/', 'must not hold credentials'],
    ['http://good.example:80@evil.example/', 'must not hold credentials'],
    ['http://user@good.example/', 'must not hold credentials'],
    ['http:/good.example/', expect.stringContaining('must be an http or https URL')],
    ['//good.example/', expect.stringContaining('must be an http or https URL')],
    ['ftp://good.example/', expect.stringContaining('must be an http or https URL')],
    ['javascript://good.example/', expect.stringContaining('must be an http or https URL')],
    ['http://?q', expect.stringContaining('must be an http or https URL')],
    ['http://go%6fd.example/', expect.stringContaining('must name a host')],
    ['http://good.example:0/', expect.stringContaining('must name a host')],
    ['http://good.example:65536/', expect.stringContaining('must name a host')],
    ['http://good.example:80:80/', expect.stringContaining('must name a host')],
    ['http://-good.example/', expect.stringContaining('must name a host')],
    ['http://[fe80::1%25eth0]/', expect.stringContaining('must name a host')],
    ['http://2130706433/', 'must write an IPv4 address as 192.0.2.1'],
    ['http://0x7f.1/', 'must write an IPv4 address as 192.0.2.1'],
    ['http://0177.0.0.1:80/', 'must write an IPv4 address as 192.0.2.1'],
    ['http://127.1/', 'must write an IPv4 address as 192.0.2.1'],
    ['http://good.example/a\\b', expect.stringContaining('backslash')],
    ['http://good.example/a b', expect.stringContaining('spaces')],
    ['http://good.example/a\u00a0b', expect.stringContaining('spaces')],
    ['http://good.example/\u202egpj', expect.stringContaining('invisible characters')],
    ['http://go\u00adod.example/', expect.stringContaining('invisible characters')],
    ['http://good.example/\ud800', expect.stringContaining('invisible characters')],
    [`http://good.example/${'ä'.repeat(400)}`, expect.stringContaining('2048')],
  ])('%j is refused: %s', (text, message) => {
    expect(problem(text)).toEqual(message);
  });

  it.each([
    ['http://192.0.2.1:8080/', 'http://192.0.2.1:8080/'],
    ['http://192.0.2.1./', 'http://192.0.2.1/'],
    ['http://good.example:', 'http://good.example/'],
    ['http://good.example?q=@x', 'http://good.example/?q=@x'],
    ['https://good.example:443/@user/%5C', 'https://good.example/@user/%5C'],
    ['http://good.example/a/../b', 'http://good.example/b'],
    ['http://good.example/ä', 'http://good.example/%C3%A4'],
  ])('%j is taken, as %j', (text, href) => {
    expect(parseWebUrl(text)).toMatchObject({ href });
  });

  it('that is taken is stored so that it is taken again, unchanged, and leads to the same target', () => {
    const http = kindOf('http');
    const anyUrl = fc.oneof(
      fc.webUrl({ withQueryParameters: true, withFragments: true }),
      fc.string({ unit: 'binary' }).map((text) => `http://${text}`),
      fc.tuple(name, which).map(([host, capitals]) => shout(`https://${host}/a`, capitals)),
    );
    fc.assert(
      fc.property(anyUrl, (text) => {
        const parsed = parseWebUrl(text);
        if (typeof parsed === 'string') return;
        expect(parseWebUrl(parsed.href)).toMatchObject({ href: parsed.href });
        expect(http.target({ url: parsed.href })).toBe(http.target({ url: text }));
      }),
      { numRuns: 1_000 },
    );
  });

  it('never names the host that follows what another parser takes for its end', () => {
    fc.assert(
      fc.property(
        name,
        name,
        fc.constantFrom('\\', '\\@', '@', '\t@', '\n', ' ', '%', '\0'),
        (good, evil, cut) => {
          expect(problem(`http://${good}${cut}${evil}/`)).toEqual(expect.any(String));
        },
      ),
    );
  });
});
