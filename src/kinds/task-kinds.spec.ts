import { type DynamicModule, Injectable, Logger, Module, type Type } from '@nestjs/common';
import { DiscoveryModule } from '@nestjs/core';
import { Test, type TestingModule } from '@nestjs/testing';
import { IsIn, IsOptional, IsString } from 'class-validator';
import { ApiError } from '../errors';
import { DnsKind, HttpKind, PingKind, TcpKind, TraceKind } from './kinds';
import type { EndedCheck, ObservedCheck, TargetSignal } from './signals';
import { TaskKind, type TaskKindHandler, TaskKinds } from './task-kinds';

class WhoisSpec {
  @IsString()
  name!: string;

  @IsOptional()
  @IsIn(['iana', 'rir'])
  source?: string | null;
}

@TaskKind('whois', { spec: WhoisSpec })
class WhoisKind implements TaskKindHandler<WhoisSpec> {
  target(spec: WhoisSpec): string {
    return spec.source ?? 'iana';
  }
}

/** Stands for the module that the registry is in. */
@Module({ imports: [DiscoveryModule], providers: [TaskKinds, DnsKind], exports: [TaskKinds] })
class RegistryModule {}

/** A module of an extension, with kinds of its own. */
@Module({})
class ExtensionModule {
  static with(...providers: DynamicModule['providers'] & object): DynamicModule {
    return { module: ExtensionModule, providers };
  }
}

describe('the registry of task kinds', () => {
  let app: TestingModule | undefined;

  afterEach(() => app?.close());

  async function start(...kinds: DynamicModule['providers'] & object): Promise<TaskKinds> {
    const built = await Test.createTestingModule({
      imports: [RegistryModule, ExtensionModule.with(...kinds)],
    }).compile();
    // A kind that fails is logged; here that is no news.
    built.useLogger(false);
    app = await built.init();
    return app.get(TaskKinds, { strict: false });
  }

  /** Why the start fails. */
  const refusal = (...kinds: DynamicModule['providers'] & object): Promise<string> =>
    start(...kinds).then(
      () => 'started',
      (error: Error) => error.message,
    );

  it('finds what is decorated, and nothing else', async () => {
    @Injectable()
    class Bystander {
      target(): string {
        return 'none';
      }
    }
    const kinds = await start(TcpKind, Bystander, TraceKind, HttpKind, PingKind, {
      provide: 'value',
      useValue: 1,
    });
    expect(kinds.names()).toEqual(['dns', 'http', 'ping', 'tcp', 'trace']);
    expect(kinds.has('dns')).toBe(true);
    for (const name of ['whois', '', 'DNS', 'constructor']) expect(kinds.has(name)).toBe(false);
  });

  it('takes a kind of a module other than its own', async () => {
    const kinds = await start(WhoisKind);
    expect(kinds.names()).toEqual(['dns', 'whois']);
    expect(kinds.accept('whois', { name: 'example.com', source: null })).toEqual({
      spec: '{"kind":"whois","name":"example.com","source":null}',
      target: 'iana',
    });
    expect(kinds.accept('whois', { source: 'nobody', age: 3 }, 'tasks.7.')).toEqual({
      problems: {
        'tasks.7.spec.name': 'is required',
        'tasks.7.spec.source': 'must be one of iana, rir',
        'tasks.7.spec.age': 'is not a field of this request',
      },
    });
    expect(() => kinds.checkKnown(['dns', 'whois'])).not.toThrow();
  });

  it.each<[string, (kind: Type<object>) => DynamicModule['providers']]>([
    ['itself', (kind) => [kind]],
    ['useClass', (kind) => [{ provide: 'whois', useClass: kind }]],
    ['two names for one instance', (kind) => [kind, { provide: 'alias', useExisting: kind }]],
  ])('finds a kind that is provided by %s', async (_, provide) => {
    expect((await start(...(provide(WhoisKind) as []))).names()).toEqual(['dns', 'whois']);
  });

  it('gives a kind what it needs of others', async () => {
    @Injectable()
    class Names {
      readonly prefix = 'registry:';
    }
    @TaskKind('whois', { spec: WhoisSpec })
    class NeedyKind implements TaskKindHandler<WhoisSpec> {
      constructor(private readonly names: Names) {}
      target(spec: WhoisSpec): string {
        return this.names.prefix + spec.name;
      }
    }
    const kinds = await start(Names, NeedyKind);
    expect(kinds.accept('whois', { name: 'a' })).toMatchObject({ target: 'registry:a' });
  });

  it('stops the start where two providers claim one kind, and names both', async () => {
    @TaskKind('dns', { spec: WhoisSpec })
    class OtherDns implements TaskKindHandler {
      target(): string {
        return 'other';
      }
    }
    const message = await refusal(OtherDns);
    for (const part of ['dns', 'DnsKind', 'OtherDns']) expect(message).toContain(part);
    expect(await refusal(DnsKind)).toContain('dns');
  });

  it('stops the start where a kind has no target(), and names it', async () => {
    @TaskKind('aimless', { spec: WhoisSpec })
    class Aimless {}
    expect(await refusal(Aimless)).toMatch(/aimless.*target/);
  });

  it.each(['', 'Whois', '1whois', '-x', 'who is', 'who.is', 'who/is', 'ü', 'whois\n', 'x'.repeat(65)])(
    'refuses %j as a name',
    (name) => {
      expect(() => TaskKind(name, { spec: WhoisSpec })).toThrow(name === '' ? "''" : name);
    },
  );

  it.each(['w', 'whois', 'who-is_2', 'x'.repeat(64)])('takes %j as a name', (name) => {
    expect(() => TaskKind(name, { spec: WhoisSpec })).not.toThrow();
  });

  describe('a spec', () => {
    @TaskKind('pair', { spec: WhoisSpec })
    class PairKind implements TaskKindHandler<WhoisSpec> {
      check(spec: WhoisSpec): Record<string, string> {
        if (spec.name === 'throws') throw new Error('check was reached');
        return spec.name === spec.source ? { source: 'must not be the name' } : {};
      }
      target(spec: WhoisSpec): string {
        return spec.name;
      }
    }

    it('is checked by its kind when its fields are right, and only then', async () => {
      const kinds = await start(PairKind);
      expect(kinds.accept('pair', { name: 'iana', source: 'iana' }, 'tasks.0.')).toEqual({
        problems: { 'tasks.0.spec.source': 'must not be the name' },
      });
      expect(kinds.accept('pair', { name: 'throws', source: 'x' })).toHaveProperty([
        'problems',
        'spec.source',
      ]);
      expect(kinds.accept('pair', { name: 'throws' }, 'tasks.0.')).toEqual({
        problems: { 'tasks.0.spec': 'is more than the kind pair can handle' },
      });
      expect(kinds.accept('pair', { name: 'a' })).toMatchObject({ target: 'a' });
    });

    it('is stored with the kind first and its fields as they came', async () => {
      const kinds = await start();
      const accepted = kinds.accept('dns', { record_type: 'A', kind: 'dns', query: 'b', server: null });
      expect(accepted).toEqual({
        spec: '{"kind":"dns","record_type":"A","query":"b","server":null}',
        target: 'resolver',
      });
    });

    it('gives a target of 512 characters at most', async () => {
      const accepted = (await start(WhoisKind, PairKind)).accept('pair', { name: 'n'.repeat(2_000) });
      expect(accepted).toMatchObject({ target: 'n'.repeat(512) });
    });

    it.each([undefined, null, 5, 'dns', [], [{}]])('can not be %j', async (spec) => {
      expect((await start()).accept('dns', spec, 'tasks.3.')).toEqual({
        problems: { 'tasks.3.spec': spec == null ? 'is required' : 'must be an object' },
      });
    });

    it.each([undefined, null, 5, {}, ['dns'], 'whois', '__proto__'])(
      'of the kind %j is refused',
      async (kind) => {
        expect((await start()).accept(kind, { query: 'a' }, 'tasks.3.')).toEqual({
          problems: { 'tasks.3.kind': kind == null ? 'is required' : 'must be one of dns' },
        });
      },
    );
  });

  describe('a target in a limit or a filter', () => {
    @TaskKind('spelt', { spec: WhoisSpec })
    class SpeltKind implements TaskKindHandler<WhoisSpec> {
      readonly targetForm = 'must be a word';
      target(spec: WhoisSpec): string {
        return spec.name.toLowerCase();
      }
      parseTarget(text: string): string | undefined {
        if (text === 'throws') throw new Error('can not read it');
        return /^\w+$/.test(text) ? text.toLowerCase() : undefined;
      }
      canonicalFields(spec: WhoisSpec): Partial<WhoisSpec> {
        return spec.name === 'Stored' ? { name: 'stored' } : {};
      }
    }

    it('is spelt as its kind spells it, or refused in its words', async () => {
      const kinds = await start(SpeltKind);
      expect(kinds.parseTarget('spelt', 'Word')).toEqual({ target: 'word' });
      for (const text of ['two words', '', 'throws'])
        expect(kinds.parseTarget('spelt', text)).toEqual({ problem: 'must be a word' });
    });

    it('of a kind that does not say is taken as it is written, without hidden characters', async () => {
      const kinds = await start(WhoisKind);
      for (const kind of ['whois', 'gone'])
        expect(kinds.parseTarget(kind, 'As It Is.')).toEqual({ target: 'As It Is.' });
      for (const text of ['a\0', 'a\u202eb', '\ud800', 'a\u200b'])
        expect(kinds.parseTarget('whois', text)).toHaveProperty('problem');
      expect(kinds.parseTarget('whois', 't'.repeat(600))).toEqual({ target: 't'.repeat(512) });
    });

    it('is looked for under every kind that can have it, or the one that is said', async () => {
      const kinds = await start(SpeltKind, WhoisKind, PingKind);
      expect(kinds.findTargets('Word')).toEqual([
        { kind: 'dns', target: 'word:53' },
        { kind: 'ping', target: 'word' },
        { kind: 'spelt', target: 'word' },
        { kind: 'whois', target: 'Word' },
      ]);
      expect(kinds.findTargets('Word', 'ping')).toEqual([{ kind: 'ping', target: 'word' }]);
      expect(() => kinds.findTargets('127.1', 'spelt')).toThrow(
        expect.objectContaining({ code: 'ERR_VALIDATION', details: { target: 'must be a word' } }),
      );
    });

    it('goes with the fields of a spec that are stored in another spelling', async () => {
      const kinds = await start(SpeltKind);
      expect(kinds.accept('spelt', { source: null, name: 'Stored' })).toEqual({
        spec: '{"kind":"spelt","source":null,"name":"stored"}',
        target: 'stored',
      });
    });

    it.each(['parseTarget', 'canonicalFields', 'signalOf'])(
      'stops the start if %s is not a method',
      async (name) => {
        @TaskKind('odd', { spec: WhoisSpec })
        class OddKind {
          constructor() {
            Object.assign(this, { [name]: 5 });
          }
          target(): string {
            return 'x';
          }
        }
        expect(await refusal(OddKind)).toMatch(new RegExp(`${name} that is not a method`));
      },
    );
  });

  describe('what a report says of its target', () => {
    const NOW = 1_764_000_000_000;
    const check = (more: Partial<EndedCheck> = {}): EndedCheck => ({
      report: 'completed',
      outcome: 'success',
      observations: [{ name: 'note', value: 'x' }],
      received_at: NOW,
      ...more,
    });
    const BY_OUTCOME = { signal: 'answered', rttMs: null, retryAfterMs: null };

    /** A kind that records what it is asked, and answers as it is told. */
    function saying(answer: (report: ObservedCheck) => unknown) {
      const asked: ObservedCheck[] = [];
      @TaskKind('whois', { spec: WhoisSpec })
      class SayingKind extends WhoisKind {
        signalOf(report: ObservedCheck): Partial<TargetSignal> | undefined {
          asked.push(report);
          return answer(report) as Partial<TargetSignal> | undefined;
        }
      }
      return { SayingKind, asked };
    }

    it.each<[string, string, unknown, string]>([
      ['dns', 'rcode', 'REFUSED', 'pushed_back'],
      ['http', 'status', 503, 'pushed_back'],
      ['tcp', 'state', 'filtered', 'bad'],
      ['ping', 'received', 0, 'bad'],
      ['trace', 'hops', ['*'], 'bad'],
    ])('is read by the kind %s from %s', async (kind, name, value, signal) => {
      const kinds = await start(TcpKind, TraceKind, HttpKind, PingKind);
      expect(kinds.signalOf(kind, check({ observations: [{ name, value }] })).signal).toBe(signal);
    });

    it('is by the outcome for a kind that does not say, and for one that is not loaded', async () => {
      const kinds = await start(WhoisKind);
      for (const kind of ['whois', 'gone', 'constructor'])
        expect(kinds.signalOf(kind, check({ rtt_ms: 4 }))).toEqual({ ...BY_OUTCOME, rttMs: 4 });
    });

    it("asks the kind with the report's outcome and its first 64 observations", async () => {
      const { SayingKind, asked } = saying(() => ({ signal: 'pushed_back', rttMs: 3, retryAfterMs: 5 }));
      const kinds = await start(SayingKind);
      const many = Array.from({ length: 1_000 }, (_, i) => ({ name: `o${i}`, value: i }));
      expect(kinds.signalOf('whois', check({ observations: many }))).toEqual({
        signal: 'pushed_back',
        rttMs: null,
        retryAfterMs: 5,
      });
      kinds.signalOf('whois', { report: 'completed', received_at: NOW });
      // With a failure too: the pause that the target asked for may be in the observations.
      expect(kinds.signalOf('whois', check({ failure: 'throttled' })).retryAfterMs).toBe(5);
      expect(asked).toEqual([
        { outcome: 'success', observations: many.slice(0, 64), received_at: NOW },
        { outcome: null, observations: [], received_at: NOW },
        { outcome: 'success', observations: check().observations, received_at: NOW },
      ]);
    });

    it('does not ask the kind of a lease that is returned without observations', async () => {
      const { SayingKind, asked } = saying(() => ({ signal: 'bad' }));
      const kinds = await start(SayingKind);
      for (const observations of [undefined, null, []])
        expect(kinds.signalOf('whois', check({ report: 'cancelled', observations })).signal).toBe('local');
      expect(asked).toEqual([]);
      expect(kinds.signalOf('whois', check({ report: 'cancelled' })).signal).toBe('bad');
    });

    it.each<[string, () => unknown]>([
      [
        'throws',
        () => {
          throw new Error('can not read it');
        },
      ],
      ['gives another signal', () => ({ signal: 'fine' })],
      ['gives a time that is no number', () => ({ signal: 'bad', rttMs: 'long' })],
      ['gives a promise', () => Promise.reject(new Error('too late'))],
      [
        'gives what can not be read',
        () => ({
          get signal() {
            throw new Error('no');
          },
        }),
      ],
    ])('is by the outcome if the kind %s; that is logged once for each unit of work', async (_, answer) => {
      const kinds = await start(saying(answer).SayingKind);
      const logged = jest.spyOn(Logger.prototype, 'error').mockImplementation(() => undefined);
      try {
        for (const received_at of [NOW, NOW, NOW, NOW + 1, NOW + 1])
          expect(kinds.signalOf('whois', check({ received_at }))).toEqual(BY_OUTCOME);
        expect(logged.mock.calls.map(([entry]) => entry)).toEqual([
          { kind: 'whois', err: expect.any(Error) },
          { kind: 'whois', err: expect.any(Error) },
        ]);
      } finally {
        logged.mockRestore();
      }
    });
  });

  it('names the kinds of a claim that there are not', async () => {
    const kinds = await start();
    const problem = (...names: string[]): unknown => {
      try {
        return kinds.checkKnown(names);
      } catch (error) {
        return error;
      }
    };
    expect(problem()).toBeUndefined();
    expect(problem('dns')).toBeUndefined();
    const error = problem('dns', 'a', 'b') as ApiError;
    expect(error).toBeInstanceOf(ApiError);
    expect([error.code, Object.keys(error.details as object)]).toEqual([
      'ERR_VALIDATION',
      ['capacities.a', 'capacities.b'],
    ]);
    const many = problem(...Array.from({ length: 5_000 }, (_, i) => `k${i}`)) as ApiError;
    expect(Object.keys(many.details as object)).toHaveLength(20);
  });
});
