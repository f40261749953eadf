import { applyDecorators } from '@nestjs/common';
import { ApiProperty } from '@nestjs/swagger';
import { Transform } from 'class-transformer';
import {
  IsInt,
  IsOptional,
  IsString,
  Max,
  MaxLength,
  Min,
  MinLength,
  registerDecorator,
} from 'class-validator';
import { isName, NAME_PATTERN, nameProblem } from './text';
import { IsId, parseId } from './validation';

/** Checks that the value is a name of at least one character, see {@link nameProblem}. */
export const IsName = (maxLength: number): PropertyDecorator =>
  applyDecorators(
    ApiProperty({ pattern: NAME_PATTERN }),
    IsString(),
    MinLength(1),
    MaxLength(maxLength),
    HasNoNameProblem(),
  );

const HasNoNameProblem = (): PropertyDecorator => (target, property) =>
  registerDecorator({
    name: 'hasNoNameProblem',
    target: target.constructor,
    propertyName: property as string,
    validator: {
      validate: (value: unknown) => typeof value !== 'string' || isName(value),
      defaultMessage: (args) => nameProblem(String(args?.value)) ?? '',
    },
  });

/** Checks that the value, if given, is an integer in the range, and documents it in OpenAPI. */
export const OptionalInteger = (range: {
  minimum: number;
  maximum: number;
  default?: number;
  example: number;
}): PropertyDecorator =>
  applyDecorators(
    ApiProperty({ required: false, nullable: true, type: 'integer', ...range }),
    IsOptional(),
    IsInt(),
    Min(range.minimum),
    Max(range.maximum),
  );

/** Converts the value of a query, if given, to an id. Any other text is kept, so that the validation refuses it. */
export const OptionalIdInQuery = (): PropertyDecorator =>
  applyDecorators(
    Transform(({ value }) => (typeof value === 'string' ? (parseId(value) ?? value) : value)),
    IsOptional(),
    IsId(),
  );
