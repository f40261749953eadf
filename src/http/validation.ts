import { type ArgumentMetadata, Injectable, type PipeTransform } from '@nestjs/common';
import { plainToInstance } from 'class-transformer';
import {
  getMetadataStorage,
  registerDecorator,
  type ValidationArguments,
  type ValidationError,
  ValidationTypes,
  validateSync,
} from 'class-validator';
import { type ErrorDetails, fail } from '../errors';
import type { BodyShape, MemberShape } from './json-body';
import { fieldName } from './text';

type Class<T extends object = object> = new () => T;

/** How many problems an error names at most: unknown fields, or items of a list. */
export const MAX_PROBLEMS = 50;

/** The checks of one field's decorators, without messages. */
interface FieldCheck {
  readonly property: string;
  passes(object: object, value: unknown): boolean;
}

/** What a class declares by decorators of class-validator. */
interface Declared {
  /** The shape of each field. */
  readonly fields: ReadonlyMap<string, MemberShape>;
  /** Whether a value is valid; undefined if the class has a decorator that only the library can check. */
  readonly isValid: ((value: object) => boolean) | undefined;
}

const declared = new WeakMap<Class, Declared>();

function declaredBy(target: Class): Declared {
  let known = declared.get(target);
  if (!known) {
    const metadata = getMetadataStorage().getTargetValidationMetadatas(target, '', false, false);
    known = {
      fields: new Map([
        ...metadata.map(({ propertyName }): [string, MemberShape] => [propertyName, {}]),
        ...metadata
          .filter(({ name }) => name === ITEMS)
          .map(({ propertyName, constraints: [read] }): [string, MemberShape] => [propertyName, read()]),
      ]),
      isValid: checkOf(target, metadata),
    };
    declared.set(target, known);
  }
  return known;
}

const fromAgents = new WeakSet<object>();

/**
 * Marks the body of an agent's request: undeclared fields, also of its lists' items, are ignored whatever they hold, because
 * agents and servers are upgraded in any order. In other bodies, undeclared fields are problems.
 */
export const AgentBody = (): ClassDecorator => (target) => void fromAgents.add(target);

const isAgentBody = (target: object): boolean => fromAgents.has(target);

/** Returns the members of a body of this class that are read; undefined for all. */
export function shapeOf(target: Class): BodyShape | undefined {
  return isAgentBody(target) ? Object.fromEntries(declaredBy(target).fields) : undefined;
}

type Metadata = ReturnType<ReturnType<typeof getMetadataStorage>['getTargetValidationMetadatas']>;

/**
 * Collects the library's checks of a class into one function. The library reads its metadata again for each value, which costs
 * more than the checks. Nearly every value is valid, so only invalid ones go to the library, for their messages.
 */
function checkOf(target: Class, metadata: Metadata): ((value: object) => boolean) | undefined {
  const { CUSTOM_VALIDATION, CONDITIONAL_VALIDATION } = ValidationTypes;
  const simple = metadata.every(
    ({ type, each, validateIf }) =>
      !each && !validateIf && (type === CUSTOM_VALIDATION || type === CONDITIONAL_VALIDATION),
  );
  if (!simple) return undefined;
  const checks = [...Map.groupBy(metadata, (entry) => entry.propertyName)].map(
    ([property, entries]): FieldCheck => {
      const conditions = entries
        .filter(({ type }) => type === CONDITIONAL_VALIDATION)
        .map(({ constraints }) => constraints[0] as (object: object, value: unknown) => boolean);
      const constraints = entries
        .filter(({ type }) => type === CUSTOM_VALIDATION)
        .flatMap((entry) =>
          getMetadataStorage()
            .getTargetValidatorConstraints(entry.constraintCls)
            .map(({ instance }) => ({ instance, constraints: entry.constraints })),
        );
      return {
        property,
        passes: (object, value) =>
          !conditions.every((applies) => applies(object, value)) ||
          constraints.every(
            ({ instance, constraints: of }) =>
              instance.validate(value, {
                value,
                constraints: of,
                targetName: target.name,
                object,
                property,
              }) === true,
          ),
      };
    },
  );
  return (value) =>
    checks.every(({ property, passes }) => passes(value, (value as Record<string, unknown>)[property]));
}

/**
 * Checks a plain value against a class with class-validator's decorators, and creates an instance of the class. Values are
 * neither converted nor copied.
 * @param path the prefix of each field's name in the problems, such as `tasks.3.spec.`
 * @returns the instance, and the problems by field
 */
export function checkFields<T extends object>(
  target: Class<T>,
  plain: unknown,
  path = '',
): { value: T; problems: ErrorDetails } {
  // Without a prototype, so that a field may have any name.
  const problems: ErrorDetails = Object.create(null);
  const value = new target();
  if (typeof plain !== 'object' || plain === null || Array.isArray(plain)) {
    problems[path.replace(/\.$/, '') || 'body'] = 'must be an object';
    return { value, problems };
  }
  const { fields, isValid } = declaredBy(target);
  let unknown = 0;
  for (const [name, given] of Object.entries(plain)) {
    const isField = fields.has(name);
    if (isField) (value as Record<string, unknown>)[name] = given;
    if (isAgentBody(target) || (!isField && unknown++ >= MAX_PROBLEMS)) continue;
    // PostgreSQL stores no text with U+0000, and operators' texts are compared with names. Probes' values are kept as JSON.
    if (typeof given === 'string' && given.includes('\0'))
      problems[fieldName(path + name)] = 'must not hold the character U+0000';
    else if (!isField) problems[fieldName(path + name)] ??= 'is not a field of this request';
  }
  if (isValid?.(value)) return { value, problems };
  collect(
    validateSync(value, { forbidUnknownValues: false, validationError: { target: false } }),
    path,
    problems,
  );
  return { value, problems };
}

/** The type that a value must have before these checks of class-validator make sense. */
const EXPECTS: Readonly<Record<string, string>> = {
  min: 'number',
  max: 'number',
  minLength: 'string',
  maxLength: 'string',
  isLength: 'string',
  matches: 'string',
};

/** class-validator's message for a choice; our own checks write `must be one of a, b`. */
const LIBRARY_CHOICE = 'must be one of the following values: ';

/** Collects one problem for each field: first that it is required, then its type, then its range. */
function collect(errors: ValidationError[], path: string, problems: ErrorDetails): void {
  for (const error of errors) {
    const [field, message] = problemOf(error, path);
    if (message !== undefined) problems[field] ??= message;
    collect(error.children ?? [], `${path}${error.property}.`, problems);
  }
}

function problemOf({ property, value, constraints }: ValidationError, path: string): [string, string?] {
  const field = path + property;
  if (constraints === undefined) return [field];
  if (value === undefined || value === null) return [field, 'is required'];
  const failed = Object.keys(constraints);
  const name = failed.find((constraint) => !(constraint in EXPECTS)) ?? (failed[0] as string);
  const text = constraints[name] as string;
  if (name === ITEMS) return splitItemProblem(field, text);
  const expected = EXPECTS[name];
  if (expected !== undefined && typeof value !== expected) return [field, `must be a ${expected}`];
  const message = text.startsWith(`${property} `) ? text.slice(property.length + 1) : text;
  return [field, message.replace(LIBRARY_CHOICE, 'must be one of ')];
}

const ITEMS = 'items';

/** A problem of the item at an index, or of a field within it. */
export type ItemProblem = [at: string | number, message: string];

/**
 * Checks a field as a whole with one function, because decorators on each field of each item are too slow for long lists.
 * `Field` derives such a function from its form.
 * @param check returns the first problem, or undefined; gets whether the body is an agent's, see {@link AgentBody}
 * @param read returns which parts of the field are read from an agent's body
 */
export function Items(
  check: (value: unknown, isAgents: boolean) => ItemProblem | undefined,
  read: () => MemberShape = () => ({}),
): PropertyDecorator {
  // By the class of the body, not of the decorator: it may inherit the field.
  const problemOf = (value: unknown, args?: ValidationArguments) =>
    check(value, args !== undefined && isAgentBody(args.object.constructor));
  return (target, property) =>
    registerDecorator({
      name: ITEMS,
      target: target.constructor,
      propertyName: property as string,
      constraints: [read],
      validator: {
        validate: (value: unknown, args) => problemOf(value, args) === undefined,
        defaultMessage: (args) => {
          const [at, message] = problemOf(args?.value, args) ?? ['', ''];
          // Encoded: a name may hold a line break, or `$property`, which the library would replace.
          return `${encodeURIComponent(fieldName(String(at)))}\n${message}`;
        },
      },
    });
}

function splitItemProblem(field: string, text: string): [string, string] {
  const cut = text.indexOf('\n');
  const at = decodeURIComponent(text.slice(0, cut));
  return [at === '' ? field : fieldName(`${field}.${at}`), text.slice(cut + 1)];
}

/** Whether a value can be an id: an integer from 1 to 2^53 - 1. */
export function isId(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) > 0;
}

/**
 * Validates bodies and queries by their class. Reports one problem of each field, of a list or a map the first in it; of unknown
 * fields, the first 50.
 * Queries are text, so class-transformer converts them first.
 */
@Injectable()
export class RequestValidation implements PipeTransform {
  /** @throws ERR_VALIDATION with a message for each field */
  transform(plain: unknown, metadata: ArgumentMetadata): unknown {
    const target = metadata.metatype as Class | undefined;
    if (
      !target ||
      metadata.type === 'custom' ||
      metadata.type === 'param' ||
      declaredBy(target).fields.size === 0
    )
      return plain;
    if (plain === undefined) {
      // The body may be absent if no field is required.
      const empty = checkFields(target, {});
      if (Object.keys(empty.problems).length === 0) return empty.value;
    }
    const { value, problems } = checkFields(
      target,
      metadata.type === 'query' ? convertQuery(target, plain) : plain,
    );
    if (Object.keys(problems).length > 0) throw fail('ERR_VALIDATION', problems);
    return value;
  }
}

/** Converts the values of a query. class-transformer drops names such as `__proto__`: they are added again as unknown fields. */
function convertQuery(target: Class, plain: unknown): object {
  const typed: Record<string, unknown> = Object.assign(Object.create(null), plainToInstance(target, plain));
  for (const name of Object.keys(plain as object)) if (!(name in typed)) typed[name] = undefined;
  return typed;
}

/** Parses an id from digits. @returns undefined if it is not a positive integer below 2^53 */
export function parseId(text: string): number | undefined {
  const id = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  return isId(id) ? id : undefined;
}

/** Parses an id in a path. */
@Injectable()
export class IdParam implements PipeTransform<string, number> {
  /** @throws ERR_VALIDATION it is not a positive integer below 2^53 */
  transform(text: string, metadata: ArgumentMetadata): number {
    const id = parseId(text);
    if (id === undefined)
      throw fail('ERR_VALIDATION', { [metadata.data ?? 'id']: 'must be a positive integer' });
    return id;
  }
}

/** Checks that the value is an id: an integer from 1 to 2^53 - 1. */
export function IsId(): PropertyDecorator {
  return (target, property) =>
    registerDecorator({
      name: 'isId',
      target: target.constructor,
      propertyName: property as string,
      validator: { validate: isId, defaultMessage: () => 'must be an integer from 1 to 9007199254740991' },
    });
}
