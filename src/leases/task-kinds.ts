import { Injectable, Logger, type OnModuleInit, type Type } from '@nestjs/common';
import { DiscoveryService } from '@nestjs/core';
import { ApiExtraModels, ApiProperty, getSchemaPath } from '@nestjs/swagger';
import type { Transaction } from '../database/statements';
import { type ErrorDetails, fail } from '../errors';
import { ExtensionError, extensionOf } from '../extensions';
import { fieldName, nameProblem } from '../http/text';
import { checkFields, MAX_PROBLEMS } from '../http/validation';
import { LeaseGrant, type Observation } from './leases.dto';
import type { Outcome } from './result.entity';
import { TaskInput, TaskView } from './tasks.dto';

/** What a kind declares: its name, and the class that validates and documents its spec. */
export interface TaskKindOptions {
  kind: string;
  spec: Type<object>;
}

/** A report that took effect, as the kind of its task is told of it. */
export interface TakenReport<Spec extends object = object> {
  lease_id: number;
  task_id: number;
  agent_id: number;
  target: string;
  spec: Spec;
  report: 'completed' | 'cancelled';
  /** Null if the report left it out. */
  outcome: Outcome | null;
  observations: Observation[];
  /** In ms since the epoch. */
  received_at: number;
}

/** A kind of task. The provider that implements it is decorated with {@link TaskKind}. */
export interface TaskKindHandler<Spec extends object = object> {
  /**
   * What a check is aimed at, in its one spelling: tasks with the same target share a concurrency window. At most 512
   * characters count.
   */
  target(spec: Spec): string;
  /**
   * Gives a target that an operator wrote, in a limit or a filter, the spelling that `target` gives it. Must take what
   * `target` gave, and give it back as it is. A kind without this has its targets written exactly.
   * @returns undefined if no task of the kind can have such a target
   */
  parseTarget?(text: string): string | undefined;
  /** What a target must be, for who wrote one that `parseTarget` does not take: 'must be host:port, such as …'. */
  readonly targetForm?: string;
  /** Fields of an accepted spec that are stored in another spelling than they were sent in. */
  canonicalFields?(spec: Spec): Partial<Spec>;
  /** Problems that the spec's decorators can't express, by field of the spec. */
  check?(spec: Spec): ErrorDetails;
  /**
   * Told of reports on tasks of the kind in the transaction that takes them: once for each request, with all that took
   * effect, never again for a repeat. Nothing but `tx` may be awaited. What it writes is stored with the reports or not
   * at all; what it throws undoes what it wrote, is logged, and leaves the reports as they are.
   */
  onReports?(tx: Transaction, reports: readonly TakenReport<Spec>[]): Promise<void>;
}

/** A spec that was accepted: the text that is stored, and the target derived from it. */
export interface AcceptedSpec {
  spec: string;
  target: string;
}

const MAX_TARGET = 512;
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}]/u;

const KindMark = DiscoveryService.createDecorator<TaskKindOptions>();

/**
 * Makes a provider a task kind: `@TaskKind('whois', { spec: WhoisSpec })`. It is found wherever it is provided; specs
 * are validated by the class's decorators when tasks are enqueued.
 */
export const TaskKind = (kind: string, options: { spec: Type<object> }): ClassDecorator => {
  if (!/^[a-z][a-z0-9_-]{0,63}$/.test(kind)) throw new Error(`'${kind}' can't name a task kind`);
  return (target) => {
    Injectable()(target);
    KindMark({ kind, spec: options.spec })(target);
  };
};

interface Entry {
  options: TaskKindOptions;
  handler: TaskKindHandler;
  extension: string | undefined;
}

/** Knows every task kind of the application, the five of its own and those that extensions add. */
@Injectable()
export class TaskKinds implements OnModuleInit {
  private readonly logger = new Logger('TaskKinds');
  private readonly kinds = new Map<string, Entry>();

  constructor(private readonly discovery: DiscoveryService) {}

  /** Fails the start where two providers claim the same kind or one can't derive a target. */
  onModuleInit(): void {
    for (const wrapper of this.discovery.getProviders()) {
      const options = wrapper.metatype ? this.discovery.getMetadataByDecorator(KindMark, wrapper) : undefined;
      if (!options) continue;
      const handler = wrapper.instance as TaskKindHandler;
      const known = this.kinds.get(options.kind);
      const extension = extensionOf(wrapper.host?.metatype);
      const refuse = (problem: string): Error => {
        const named = `task kind ${options.kind} of ${wrapper.metatype?.name} ${problem}`;
        const owner = extension ?? known?.extension;
        return owner === undefined ? new Error(named) : new ExtensionError(owner, `is faulty: ${named}`);
      };
      if (typeof handler?.target !== 'function') throw refuse('has no target(spec) method');
      for (const name of ['onReports', 'parseTarget', 'canonicalFields'] as const)
        if (handler[name] !== undefined && typeof handler[name] !== 'function')
          throw refuse(`has ${name === 'onReports' ? 'an' : 'a'} ${name} that is not a method`);
      if (known?.handler === handler) continue;
      if (known) throw refuse(`is there already, of ${known.handler.constructor.name}`);
      this.kinds.set(options.kind, { options, handler, extension });
    }
    documentSpecs([...this.kinds.values()].map(({ options }) => options));
  }

  /** The names of all kinds, sorted. */
  names(): string[] {
    return [...this.kinds.keys()].sort();
  }

  /** Whether there is such a kind. */
  has(kind: string): boolean {
    return this.kinds.has(kind);
  }

  /**
   * Validates a spec against its kind.
   * @param path what to put before field names in the problems, such as `tasks.0.`
   * @returns the spec as it is stored, or the problems by field
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
      // Sent again it would fail again: it is the caller's to change, and the kind's owner's to mend.
      this.logger.error({ kind, err: error }, 'a task kind failed on a spec');
      return { problems: { [`${path}spec`]: `is more than the kind ${kind} can handle` } };
    }
  }

  /** The spelling of a target under which a kind's tasks and windows are kept, or what is wrong with it. */
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
      // The text is refused: a kind that can't read it has no task with such a target.
      this.logger.error({ kind, err: error }, 'a task kind failed on a target');
    }
    return { problem: handler.targetForm ?? `is not a target of the kind ${kind}` };
  }

  /**
   * What a target that an operator looks for can mean: of the kind, if it is said, else one for each kind that can have
   * such a target.
   * @throws ERR_VALIDATION no kind that is asked can have it
   */
  findTargets(text: string, kind?: string): { kind: string; target: string }[] {
    // A kind that is gone with its extension has its tasks still.
    const asked = kind === undefined ? this.names() : [kind];
    const parsed = asked.map((name) => ({ kind: name, ...this.parseTarget(name, text) }));
    const found = parsed.flatMap((one) => ('target' in one ? [{ kind: one.kind, target: one.target }] : []));
    if (found.length > 0) return found;
    const named = kind === undefined ? (one: string) => `as ${one}, it ` : () => '';
    const problems = parsed.flatMap((one) => ('problem' in one ? [named(one.kind) + one.problem] : []));
    throw fail('ERR_VALIDATION', { target: problems.join('; ') });
  }

  /** Whether a kind wants to be told of reports. */
  wantsReports(kind: string): boolean {
    return this.kinds.get(kind)?.handler.onReports !== undefined;
  }

  /** Tells a kind of reports that took effect. What it throws is logged and undoes only what it wrote. */
  async tell(tx: Transaction, kind: string, reports: readonly TakenReport[]): Promise<void> {
    const told = await tx.attempt(async () => this.kinds.get(kind)?.handler.onReports?.(tx, reports));
    if (told.status === 'fulfilled') return;
    this.logger.error(
      { kind, lease_ids: reports.map((report) => report.lease_id), err: told.reason },
      'a task kind failed on reports; they were taken all the same',
    );
  }

  /** @throws ERR_VALIDATION naming each kind in a map of capacities that there is not */
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

/** Finds texts of a spec, however deep, that are no names: agents and databases would read them differently. */
function findHidden(value: unknown, path: string, problems: ErrorDetails): void {
  if (Object.keys(problems).length >= MAX_PROBLEMS) return;
  if (typeof value === 'string') {
    const problem = nameProblem(value);
    if (problem) problems[fieldName(path)] = problem;
  } else if (typeof value === 'object' && value !== null) {
    for (const [name, part] of Object.entries(value)) {
      const problem = nameProblem(name);
      // Not by its name, which may be anything.
      if (problem) problems[fieldName(path)] = `has a field whose name ${problem}`;
      else findHidden(part, `${path}.${name}`, problems);
    }
  }
}

/** Shows in the API's document what each kind takes, wherever there is a spec in it. */
function documentSpecs(kinds: readonly TaskKindOptions[]): void {
  const kindsOf = new Map<Type<object>, string[]>();
  for (const { kind, spec } of kinds) kindsOf.set(spec, [...(kindsOf.get(spec) ?? []), kind]);
  for (const [spec, names] of kindsOf) {
    const description = 'The kind again.';
    ApiProperty({ required: false, enum: names, example: names[0], description })(spec.prototype, 'kind');
  }
  // Not oneOf: a spec with nothing but a host is one of several kinds.
  ApiProperty({ enum: kinds.map(({ kind }) => kind).sort(), example: 'dns' })(TaskInput.prototype, 'kind');
  const anyOf = [...kindsOf.keys()].map((spec) => ({ $ref: getSchemaPath(spec) }));
  for (const holder of [TaskInput, TaskView, LeaseGrant]) {
    ApiProperty({ anyOf })(holder.prototype, 'spec');
    ApiExtraModels(...kindsOf.keys())(holder);
  }
}
