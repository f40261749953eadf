import { Injectable, Logger, type OnModuleInit, type Type } from '@nestjs/common';
import { DiscoveryService } from '@nestjs/core';
import { ApiExtraModels, ApiProperty, getSchemaPath } from '@nestjs/swagger';
import type { Transaction } from '../database/statements';
import { type ErrorDetails, fail } from '../errors';
import { ExtensionError, extensionOf } from '../extensions';
import { fieldName, nameProblem } from '../http/text';
import { checkFields, MAX_PROBLEMS } from '../http/validation';
import type { Observation, Outcome } from './observations';
import {
  checkedEvidence,
  type EndedCheck,
  type Evidence,
  isSilent,
  MAX_OBSERVED,
  type ObservedCheck,
  type TargetSignal,
  targetSignal,
} from './signals';
import { specHolders } from './spec-holders';

/** The declaration of a kind: its name, and the class that validates and documents its spec. */
export interface TaskKindOptions {
  kind: string;
  spec: Type<object>;
}

/** A report that took effect, as the kind of its task receives it. */
export interface TakenReport<Spec extends object = object> {
  lease_id: number;
  task_id: number;
  agent_id: number;
  target: string;
  spec: Spec;
  report: 'completed' | 'cancelled';
  /** Null if the report has none. */
  outcome: Outcome | null;
  observations: Observation[];
  /** In ms since the epoch. */
  received_at: number;
}

/** A kind of task. The provider that implements it is decorated with {@link TaskKind}. */
export interface TaskKindHandler<Spec extends object = object> {
  /**
   * Returns the target of a check in its canonical spelling: tasks with the same target share a concurrency window. Only the
   * first 512 characters count.
   */
  target(spec: Spec): string;
  /**
   * Converts a target from an operator's limit or filter to the spelling that `target` returns. It must return a result of
   * `target` unchanged. For a kind without this method, operators must write targets exactly.
   * @returns undefined if no task of the kind can have such a target
   */
  parseTarget?(text: string): string | undefined;
  /** The message for a target that `parseTarget` refuses: 'must be host:port, such as …'. */
  readonly targetForm?: string;
  /** Returns the fields of an accepted spec that are stored in another spelling than they were sent. */
  canonicalFields?(spec: Spec): Partial<Spec>;
  /** Returns problems that the spec's decorators can't express, by field of the spec. */
  check?(spec: Spec): ErrorDetails;
  /**
   * Receives reports on tasks of the kind, in the transaction that stores them: once for each request, with all reports that
   * took effect, and not for repeated ones. It may await nothing but `tx`. Its writes are stored with the reports or not at
   * all. If it throws, its writes are rolled back, the error is logged, and the reports are stored all the same.
   */
  onReports?(tx: Transaction, reports: readonly TakenReport<Spec>[]): Promise<void>;
  /**
   * Says what a check shows of its target, as far as its observations tell: the rate of starts at the target depends on it. It
   * is called for each report that ends a lease, up to 1,000 times in one transaction, so it must be fast and await nothing.
   * What it leaves out is decided by the report's outcome; a failure and an `rtt_ms` in the report have precedence. If it
   * throws or returns something else, the error is logged, and the report counts as if it had returned nothing.
   * @returns undefined if the observations show nothing
   */
  signalOf?(report: ObservedCheck): Partial<TargetSignal> | undefined;
}

/** An accepted spec: the text to store, and the target derived from it. */
export interface AcceptedSpec {
  spec: string;
  target: string;
}

const MAX_TARGET = 512;
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}]/u;

const KindOptions = DiscoveryService.createDecorator<TaskKindOptions>();

/**
 * Declares a provider as a task kind: `@TaskKind('whois', { spec: WhoisSpec })`. It is found in any module; the class's
 * decorators validate specs when tasks are enqueued.
 * @throws Error the name is not lower-case letters, digits, `_` and `-`, at most 64
 */
export const TaskKind = (kind: string, options: { spec: Type<object> }): ClassDecorator => {
  if (!/^[a-z][a-z0-9_-]{0,63}$/.test(kind)) throw new Error(`'${kind}' can't name a task kind`);
  return (target) => {
    Injectable()(target);
    KindOptions({ kind, spec: options.spec })(target);
  };
};

interface Entry {
  options: TaskKindOptions;
  handler: TaskKindHandler;
  extension: string | undefined;
}

/** Registers every task kind of the application, the five built-in ones and those of extensions. */
@Injectable()
export class TaskKinds implements OnModuleInit {
  private readonly logger = new Logger('TaskKinds');
  private readonly kinds = new Map<string, Entry>();
  /** When a kind last failed to say what a report shows: the instant of the unit of work. */
  private readonly failedAt = new Map<string, number>();

  constructor(private readonly discovery: DiscoveryService) {}

  /** Finds the kinds. @throws Error two providers declare the same kind, or one lacks a method; fails the start */
  onModuleInit(): void {
    const claims = this.discovery.getProviders().flatMap((wrapper) => {
      const options = wrapper.metatype
        ? this.discovery.getMetadataByDecorator(KindOptions, wrapper)
        : undefined;
      return options ? [{ wrapper, options, extension: extensionOf(wrapper.host?.metatype) }] : [];
    });
    // The program's own first: of two providers of one kind, that of the extension is refused.
    claims.sort((a, b) => Number(a.extension !== undefined) - Number(b.extension !== undefined));
    for (const { wrapper, options, extension } of claims) {
      const handler = wrapper.instance as TaskKindHandler;
      const known = this.kinds.get(options.kind);
      const refuse = (problem: string): Error => {
        const named = `task kind ${options.kind} of ${wrapper.metatype?.name} ${problem}`;
        const owner = extension ?? known?.extension;
        return owner === undefined ? new Error(named) : new ExtensionError(owner, `is faulty: ${named}`);
      };
      if (typeof handler?.target !== 'function') throw refuse('has no target(spec) method');
      for (const name of ['onReports', 'parseTarget', 'canonicalFields', 'signalOf'] as const)
        if (handler[name] !== undefined && typeof handler[name] !== 'function')
          throw refuse(`has ${name === 'onReports' ? 'an' : 'a'} ${name} that is not a method`);
      if (known?.handler === handler) continue;
      if (known) throw refuse(`is there already, of ${known.handler.constructor.name}`);
      this.kinds.set(options.kind, { options, handler, extension });
    }
    documentSpecs([...this.kinds.values()].map(({ options }) => options));
  }

  /** Returns the names of all kinds, sorted. */
  names(): string[] {
    return [...this.kinds.keys()].sort();
  }

  /** Returns whether a kind exists. */
  has(kind: string): boolean {
    return this.kinds.has(kind);
  }

  /**
   * Validates a spec against its kind.
   * @param path the prefix of field names in the problems, such as `tasks.0.`
   * @returns the spec to store, or the problems by field
   */
  accept(kind: unknown, spec: unknown, path = ''): AcceptedSpec | { problems: ErrorDetails } {
    if (kind === undefined || kind === null) return { problems: { [`${path}kind`]: 'is required' } };
    const entry = typeof kind === 'string' ? this.kinds.get(kind) : undefined;
    if (!entry) return { problems: { [`${path}kind`]: `must be one of ${this.names().join(', ')}` } };
    if (spec === undefined || spec === null) return { problems: { [`${path}spec`]: 'is required' } };
    if (typeof spec !== 'object' || Array.isArray(spec)) {
      return { problems: { [`${path}spec`]: 'must be an object' } };
    }
    const { kind: repeated, ...fields } = spec as Record<string, unknown>;
    if (repeated !== undefined && repeated !== null && repeated !== kind) {
      return { problems: { [`${path}spec.kind`]: 'must repeat the kind of the task' } };
    }
    const { value, problems } = checkFields(entry.options.spec, fields, `${path}spec.`);
    if (Object.keys(problems).length > 0) return { problems };
    findHidden(fields, `${path}spec`, problems);
    if (Object.keys(problems).length > 0) return { problems };
    try {
      for (const [field, problem] of Object.entries(entry.handler.check?.(value) ?? {}))
        problems[`${path}spec.${field}`] = problem;
      if (Object.keys(problems).length > 0) return { problems };
      const target: unknown = entry.handler.target(value);
      if (typeof target !== 'string' || target === '')
        throw new TypeError(`target(spec) gave no text: ${typeof target}`);
      const stored = { kind, ...fields, ...entry.handler.canonicalFields?.(value) };
      return { spec: JSON.stringify(stored), target: target.slice(0, MAX_TARGET) };
    } catch (error) {
      // A problem and no ERR_BACKEND, because a retry would fail again: the caller must change the spec, or the kind's owner
      // must fix the kind.
      this.logger.error({ kind, err: error }, 'a task kind failed on a spec');
      return { problems: { [`${path}spec`]: `is more than the kind ${kind} can handle` } };
    }
  }

  /** Converts a target to the spelling under which a kind's tasks and windows are stored, or returns the problem. */
  parseTarget(kind: string, text: string): { target: string } | { problem: string } {
    const handler = this.kinds.get(kind)?.handler;
    if (!handler?.parseTarget)
      return HIDDEN.test(text)
        ? { problem: 'must not hold control characters or invisible characters' }
        : { target: text.slice(0, MAX_TARGET) };
    try {
      const target: unknown = handler.parseTarget(text);
      if (typeof target === 'string' && target !== '') return { target: target.slice(0, MAX_TARGET) };
    } catch (error) {
      // The text is refused: a kind that can't parse it has no task with such a target.
      this.logger.error({ kind, err: error }, 'a task kind failed on a target');
    }
    return { problem: handler.targetForm ?? `is not a target of the kind ${kind}` };
  }

  /**
   * Returns the canonical targets that an operator's text can mean: for the given kind, or for each kind that can have such a
   * target.
   * @throws ERR_VALIDATION no such kind can have it
   */
  findTargets(text: string, kind?: string): { kind: string; target: string }[] {
    // Not only registered kinds: the tasks of a removed extension are still stored.
    const kinds = kind === undefined ? this.names() : [kind];
    const parsed = kinds.map((name) => ({ kind: name, ...this.parseTarget(name, text) }));
    const found = parsed.flatMap((one) => ('target' in one ? [{ kind: one.kind, target: one.target }] : []));
    if (found.length > 0) return found;
    const named = kind === undefined ? (one: string) => `as ${one}, it ` : () => '';
    const problems = parsed.flatMap((one) => ('problem' in one ? [named(one.kind) + one.problem] : []));
    throw fail('ERR_VALIDATION', { target: problems.join('; ') });
  }

  /** Returns whether a kind receives reports. */
  wantsReports(kind: string): boolean {
    return this.kinds.get(kind)?.handler.onReports !== undefined;
  }

  /** Passes reports that took effect to their kind. If it throws, that is logged, and only the kind's writes are rolled back. */
  async tell(tx: Transaction, kind: string, reports: readonly TakenReport[]): Promise<void> {
    const result = await tx.attempt(async () => this.kinds.get(kind)?.handler.onReports?.(tx, reports));
    if (result.status === 'fulfilled') return;
    this.logger.error(
      { kind, lease_ids: reports.map((report) => report.lease_id), err: result.reason },
      'a task kind failed on reports; they were stored all the same',
    );
  }

  /**
   * Returns what a report that ended a lease says of its target. Only the first 64 observations count. If the kind fails, its
   * outcome counts; that is logged once for each `received_at`, so once for each unit of work.
   */
  signalOf(kind: string, check: EndedCheck): TargetSignal {
    const entry = this.kinds.get(kind);
    return targetSignal(
      check,
      entry?.handler.signalOf && !isSilent(check) ? this.evidenceOf(entry, check) : {},
    );
  }

  private evidenceOf({ options: { kind }, handler }: Entry, check: EndedCheck): Evidence | undefined {
    const { outcome = null, observations, received_at } = check;
    try {
      return checkedEvidence(
        handler.signalOf?.({
          outcome,
          observations: observations?.slice(0, MAX_OBSERVED) ?? [],
          received_at,
        }),
      );
    } catch (error) {
      if (this.failedAt.get(kind) !== received_at)
        this.logger.error(
          { kind, err: error },
          "a task kind failed on a report's signal; its outcome counts",
        );
      this.failedAt.set(kind, received_at);
      return undefined;
    }
  }

  /** Checks the kinds in a map of capacities. @throws ERR_VALIDATION some do not exist; names each */
  checkKnown(kinds: readonly string[]): void {
    const unknown = kinds.filter((kind) => !this.kinds.has(kind));
    if (unknown.length > 0) {
      const message = `is not a task kind; there are ${this.names().join(', ')}`;
      throw fail(
        'ERR_VALIDATION',
        Object.fromEntries(unknown.slice(0, 20).map((kind) => [fieldName(`capacities.${kind}`), message])),
      );
    }
  }
}

/** Finds texts in a spec, at any depth, that are not valid names: agents and databases would read them differently. */
function findHidden(value: unknown, path: string, problems: ErrorDetails): void {
  if (Object.keys(problems).length >= MAX_PROBLEMS) return;
  if (typeof value === 'string') {
    const problem = nameProblem(value);
    if (problem) problems[fieldName(path)] = problem;
  } else if (typeof value === 'object' && value !== null) {
    for (const [name, part] of Object.entries(value)) {
      const problem = nameProblem(name);
      // Reported at the parent, because the name itself is not safe to print.
      if (problem) problems[fieldName(path)] = `has a field whose name ${problem}`;
      else findHidden(part, `${path}.${name}`, problems);
    }
  }
}

/** Documents the specs of all kinds in every class of the API that has a `spec` field. */
function documentSpecs(kinds: readonly TaskKindOptions[]): void {
  const kindsOf = new Map<Type<object>, string[]>();
  for (const { kind, spec } of kinds) kindsOf.set(spec, [...(kindsOf.get(spec) ?? []), kind]);
  for (const [spec, names] of kindsOf) {
    const description = 'Repeats the kind of the task.';
    ApiProperty({ required: false, enum: names, example: names[0], description })(spec.prototype, 'kind');
  }
  const anyOf = [...kindsOf.keys()].map((spec) => ({ $ref: getSchemaPath(spec) }));
  for (const { type, isInput } of specHolders()) {
    if (isInput)
      ApiProperty({ enum: kinds.map(({ kind }) => kind).sort(), example: 'dns' })(type.prototype, 'kind');
    // Not oneOf: a spec with only a host matches several kinds.
    ApiProperty({ anyOf })(type.prototype, 'spec');
    ApiExtraModels(...kindsOf.keys())(type);
  }
}
